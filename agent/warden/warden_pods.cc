// Pods: from what the source wants to what the kernel knows.
#include <sys/stat.h>

#include <algorithm>

#include "base/log.h"
#include "warden/warden.h"

namespace nodemesh::warden {
namespace {

constexpr milliseconds kPoll{200};
constexpr milliseconds kBeat{1000};
constexpr milliseconds kAudit{60'000};
constexpr auto kReleaseDeadline = seconds(1);

std::string name_of(const model::Workload& workload) {
  return workload.ns + "/" + workload.name;
}

bool is_global(const Addr& address) {
  static const Cidr kLocal[] = {*Cidr::parse("fe80::/10"), *Cidr::parse("169.254.0.0/16")};
  return !address.is_loopback() && !address.is_unspecified() &&
         std::ranges::none_of(kLocal, [&](const Cidr& range) { return range.contains(address); });
}

bool wants_capture(const model::Workload& workload) {
  return workload.enrolled && !workload.host_network;
}

}  // namespace

Warden::Warden(io::Reactor& reactor, kernel::Capture& capture, Opener& opener, WardenOptions options)
    : reactor_(reactor),
      capture_(capture),
      opener_(opener),
      options_(std::move(options)),
      watch_(reactor, options_.kubepods, [this] { reconcile(); }),
      processes_(options_.proc),
      poll_([this] {
        poll_.arm(reactor_, kPoll);
        follow_proxy();
        leave_dead_proxy();
        reconcile();
      }),
      beat_([this] {
        beat_.arm(reactor_, kBeat);
        check(capture_.beat(), "heartbeat");
      }),
      audit_([this] {
        audit_.arm(reactor_, kAudit);
        std::set<std::string> now;
        for (const auto& finding : capture_.audit()) {
          if (finding.severity != kernel::Finding::Severity::problem) continue;
          if (!audit_findings_.contains(finding.text)) log::error(log::Component::bpf, finding.text);
          now.insert(finding.text);
        }
        audit_findings_ = std::move(now);
      }),
      orphaned_([this] { clear_listeners(); }) {}

Warden::~Warden() = default;

Result<> Warden::start() {
  auto own = own_netns_cookie();
  if (!own) return std::unexpected(std::move(own.error()));
  own_cookie_ = *own;
  proxy_cgroup_ = options_.proxy_cgroup;
  auto agent = kernel::cgroup_id(proxy_cgroup_);
  if (!agent) return std::unexpected(std::move(agent.error()));
  forget_dead_agents(*agent);
  agent_ = *agent;
  if (auto ok = capture_.add_agent(agent_); !ok) return ok;
  if (auto ok = capture_.beat(); !ok) return ok;
  if (auto ok = watch_.start(); !ok) return ok;
  poll_.arm(reactor_, kPoll);
  beat_.arm(reactor_, kBeat);
  audit_.arm(reactor_, kAudit);
  orphaned_.arm(reactor_, kOrphaned);
  return {};
}

// An agent before us may have connections yet.
void Warden::forget_dead_agents(uint64_t own) {
  auto agents = capture_.agents();
  std::erase(agents, own);
  if (agents.empty()) return;
  auto alive = cgroups_below(options_.kubepods);
  for (uint64_t id : agents) {
    if (!alive.contains(id)) check(capture_.remove_agent(id), "old agent cgroup");
  }
}

void Warden::check(const Result<>& done, std::string_view what) {
  if (!done) log::error(log::Component::bpf, done.error().message, {{"doing", what}});
}

void Warden::complain(LocalPod& pod, const std::string& why, log::Level level) {
  if (pod.complaint == why) return;
  pod.complaint = why;
  if (why.empty()) return;
  log::write(log::Component::warden, level,
             pod.live ? "pod cannot be enrolled and stays outside the mesh until it can"
                      : "pod cannot be enrolled and is denied until it can",
             {{"pod", name_of(*pod.wanted)}, {"reason", why}});
}

Warden::LocalPod* Warden::find_by_cookie(uint64_t cookie) {
  for (auto& [uid, pod] : pods_) {
    if (pod.netns && pod.netns->cookie == cookie) return &pod;
  }
  return nullptr;
}

Pod Warden::describe(const LocalPod& pod) const {
  return {
      .cookie = pod.netns->cookie,
      .uid = pod.wanted->uid,
      .ns = pod.wanted->ns,
      .name = pod.wanted->name,
      .addresses = pod.addresses,
      .enrolled = true,
      .source_kept = pod.route.ipv4 && (pod.route.ipv6 || std::ranges::all_of(pod.addresses, &Addr::is_v4)),
      .ipv6 = pod.netns->ipv6};
}

void Warden::set_pods(LocalPods pods) {
  if (released_) return;
  const bool first = !std::exchange(sourced_, true);
  std::set<std::string_view> named;
  for (auto& workload : pods) {
    named.insert(workload->uid);
    if (retired_ && !pods_.contains(workload->uid)) continue;
    LocalPod& pod = pods_[workload->uid];
    pod.wanted = std::move(workload);
  }
  for (auto entry = pods_.begin(); entry != pods_.end();) {
    if (named.contains(entry->first)) {
      ++entry;
      continue;
    }
    forget(entry->second);
    entry = pods_.erase(entry);
  }
  if (!capture_.attached()) spare_running_pods();
  reconcile();
  finish_snapshots();
  if (!first) return;
  for (auto& proxy : proxies_) {
    if (proxy->phase == Proxy::Phase::ready) join(*proxy);
  }
}

// Before this node is captured: what runs here ran outside the mesh until now, and goes on so until the proxy
// is ready for it.
void Warden::spare_running_pods() {
  for (auto& [uid, pod] : pods_) {
    auto cgroup = find_pod_cgroup(options_.kubepods, uid);
    if (cgroup && has_processes(cgroup->path)) follow_cgroup(pod, false);
  }
}

void Warden::reconcile() {
  if (retired_) return follow_retired();
  if (!sourced_) return;
  finish_leaving();
  sweep_closed();
  for (auto& [uid, pod] : pods_) reconcile_pod(pod);
  announce_to_draining();
  if (!adoption_settled_) drop_adopted();
}

void Warden::reconcile_pod(LocalPod& pod) {
  bool enrolled = wants_capture(*pod.wanted);
  if (pod.netns && !still_there(pod)) lose(pod);
  if (!enrolled) {
    if (pod.netns) unenrol(pod);
    release_closed(pod);
    follow_cgroup(pod, false);
    return complain(pod, "");
  }
  // A pod that ran outside the mesh until now goes on so until the proxy is ready for it.
  if (!pod.netns) pod.live = pod.cgroup && pod.cgroup_state == NM_ENROL_OFF;
  if (!pod.live) follow_cgroup(pod, true);
  auto done = pod.netns ? refresh(pod) : find_namespace(pod);
  if (done && !pod.netns) return;  // its predecessor in the same namespace has not left yet
  if (done) {
    complain(pod, "");
    return ensure_listeners(pod);
  }
  // Before its first process every pod passes through this.
  bool early = done.error().reason == Reason::POD_UNKNOWN;
  complain(pod, done.error().message, early ? log::Level::info : log::Level::warn);
}

// The state of a pod's cgroup decides for processes whose namespace is not known.
void Warden::follow_cgroup(LocalPod& pod, bool enrolled) {
  auto found = find_pod_cgroup(options_.kubepods, pod.wanted->uid);
  nm_enrolment state = enrolled ? NM_ENROL_ON : NM_ENROL_OFF;
  if (found == pod.cgroup && (!found || state == pod.cgroup_state)) return;
  if (pod.cgroup && (!found || found->id != pod.cgroup->id)) {
    check(capture_.remove_cgroup(pod.cgroup->id), "removing a pod's cgroup");
  }
  pod.cgroup.reset();
  if (!found) return;
  auto set = capture_.set_cgroup(found->id, state);
  check(set, "setting a pod's cgroup");
  if (!set) return;
  pod.cgroup = std::move(found);
  pod.cgroup_state = state;
}

// The namespace that the object names, else that of the pod's processes.
Result<FoundNamespace> Warden::open_namespace(const LocalPod& pod) const {
  const model::Workload& wanted = *pod.wanted;
  if (!wanted.netns.empty()) {
    if (wanted.addresses.empty())
      return fail("Pod " + name_of(wanted) + " has no address in status.podIPs yet");
    auto netns = open_netns(wanted.netns);
    if (!netns) return std::unexpected(std::move(netns.error()));
    return FoundNamespace{std::move(*netns), wanted.netns};
  }
  auto cgroup = find_pod_cgroup(options_.kubepods, wanted.uid);
  if (!cgroup) {
    return fail(Reason::POD_UNKNOWN,
                "Pod " + name_of(wanted) + " has no cgroup below " + options_.kubepods + " yet");
  }
  auto found = find_pod_netns(processes_, cgroup->path, wanted.addresses);
  if (found) return found;
  return fail(found.error().reason,
              "Pod " + name_of(wanted) + ", " + cgroup->path + ": " + found.error().message);
}

// Convinces itself that the namespace is this pod's, and enrols.
Result<> Warden::find_namespace(LocalPod& pod) {
  const model::Workload& wanted = *pod.wanted;
  if (wanted.netns.empty() && pod.cgroup) watch_.follow(pod.cgroup->path);
  auto opened = open_namespace(pod);
  if (!opened) return std::unexpected(std::move(opened.error()));
  auto& [netns, path] = *opened;
  if (netns.cookie == own_cookie_ || still_names(processes_.host_netns_path(), netns))
    return fail(path + " is the node's own network namespace, not a pod's");
  if (LocalPod* other = find_by_cookie(netns.cookie)) {
    return fail(path + " already belongs to Pod " + name_of(*other->wanted) + ": give each Pod its own");
  }
  if (auto leaving = leaving_.find(netns.cookie); leaving != leaving_.end()) {
    if (leaving->second.gone || leaving->second.uid != wanted.uid) return {};
    leaving_.erase(leaving);
  }
  pod.netns = std::move(netns);
  pod.netns_path = std::move(path);
  bool was_steered = capture_.steered(pod.netns->cookie);
  auto enrolled = find_addresses(pod);
  if (enrolled) enrolled = enrol(pod);
  if (enrolled) {
    closed_.erase(pod.netns->cookie);
  } else {
    // What was in the mesh before, perhaps by an earlier process, does not fall out of it by a failure.
    if (was_steered)
      close(pod.netns->cookie, "");
    else
      check(capture_.remove_pod(pod.netns->cookie), "undoing an enrolment");
    pod.netns.reset();
    pod.addresses.clear();
    pod.captured = false;
  }
  return enrolled;
}

// The status names a pod's addresses a second or so after its first container has started. Until then those
// count that the runtime has given to the namespace, as far as no other pod here has them.
Result<> Warden::find_addresses(LocalPod& pod) const {
  pod.found.clear();
  if (!pod.wanted->addresses.empty()) return {};
  auto present = addresses_in(pod.netns->fd.get());
  if (!present) return std::unexpected(std::move(present.error()));
  for (const Addr& address : *present) {
    bool taken = std::ranges::any_of(pods_, [&](const auto& other) {
      const auto& theirs = other.second.wanted->addresses;
      return !other.second.wanted->host_network && std::ranges::find(theirs, address) != theirs.end();
    });
    if (!taken && is_global(address) && pod.found.size() < NM_POD_ADDRESSES) pod.found.push_back(address);
  }
  if (!pod.found.empty()) return {};
  return fail(Reason::POD_UNKNOWN, "Pod " + name_of(*pod.wanted) + " has no address yet");
}

// Whether the namespace is still the pod's. Another path to it is no change, nor that no process is in it for
// a while: containers restart. A sandbox that was made anew has another.
bool Warden::still_there(LocalPod& pod) const {
  if (!pod.wanted->netns.empty()) {
    if (!still_names(pod.wanted->netns, *pod.netns)) return false;
    pod.netns_path = pod.wanted->netns;
    return true;
  }
  if (still_names(pod.netns_path, *pod.netns)) return true;
  auto cgroup = find_pod_cgroup(options_.kubepods, pod.wanted->uid);
  if (!cgroup) return false;
  if (!has_processes(cgroup->path)) return true;
  if (auto path = find_same_netns(processes_, cgroup->path, *pod.netns); !path.empty()) {
    pod.netns_path = std::move(path);
    return true;
  }
  // A process that starts is in the pod's cgroup before it is in its namespace.
  const auto& addresses = pod.wanted->addresses.empty() ? pod.found : pod.wanted->addresses;
  return !find_pod_netns(processes_, cgroup->path, addresses);
}

Result<> Warden::enrol(LocalPod& pod) {
  pod.addresses.clear();
  if (auto ok = refresh(pod); !ok) return ok;
  if (auto ok = capture_.steer(pod.netns->fd.get(), pod.netns->cookie); !ok) return ok;
  bool ipv6 = !std::ranges::all_of(pod.addresses, &Addr::is_v4);
  auto route = install_source_route(pod.netns->fd.get(), options_.proc, ipv6);
  if (!route) return std::unexpected(std::move(route.error()));
  pod.route = std::move(*route);
  if (!pod.route.missing.empty()) {
    log::warn(log::Component::warden, "the pod's application will not see client addresses",
              {{"pod", name_of(*pod.wanted)}, {"reason", pod.route.missing}});
  }
  log::info(
      log::Component::warden, "pod enrolled",
      {{"pod", name_of(*pod.wanted)}, {"cookie", pod.netns->cookie}, {"live", pod.live ? "true" : "false"}});
  return {};
}

// Brings the kernel's entry up to the object: addresses and probed ports.
Result<> Warden::refresh(LocalPod& pod) {
  const auto& wanted = pod.wanted->addresses.empty() ? pod.found : pod.wanted->addresses;
  if (pod.addresses != wanted) {
    auto present = addresses_in(pod.netns->fd.get());
    if (!present) return std::unexpected(std::move(present.error()));
    for (const Addr& address : wanted) {
      if (std::ranges::find(*present, address) != present->end()) continue;
      return fail("Pod " + name_of(*pod.wanted) + ": no interface in " + pod.netns_path +
                  " has the address " + address.to_string());
    }
    bool on = pod.captured || !pod.live;
    auto set = capture_.set_pod(pod.netns->cookie, wanted, on ? NM_ENROL_ON : NM_ENROL_OFF);
    if (!set) return set;
    pod.captured = on;
    bool first = pod.addresses.empty();
    pod.addresses = wanted;
    if (!first) tell_all(PodUpdate{to_record(describe(pod))});
  }
  set_probes(pod);
  return {};
}

void Warden::set_probes(LocalPod& pod) {
  std::vector<SockAddr> wanted;
  for (const Addr& address : pod.addresses) {
    for (uint16_t port : pod.wanted->probe_ports) wanted.push_back({address, port});
  }
  if (wanted == pod.probes) return;
  for (const SockAddr& old : pod.probes) {
    if (std::ranges::find(wanted, old) == wanted.end()) check(capture_.clear_probe(old), "removing a probe");
  }
  for (const SockAddr& probe : wanted) check(capture_.set_probe(probe), "setting a probe");
  pod.probes = std::move(wanted);
}

// The label went away: new connections go directly from now on, open sessions run to their end.
void Warden::unenrol(LocalPod& pod) {
  log::info(log::Component::warden, "pod un-enrolled", {{"pod", name_of(*pod.wanted)}});
  follow_cgroup(pod, false);
  Pod last = describe(pod);
  last.enrolled = false;
  check(capture_.remove_pod(last.cookie), "removing a pod");
  leave(pod, false);
  tell_all(PodUpdate{to_record(last)});
}

// Its object or the way to its namespace is gone, which nobody may use to open the pod: as long as the
// namespace lives, nothing gets in.
void Warden::lose(LocalPod& pod) {
  log::info(log::Component::warden, "pod's network namespace is gone", {{"pod", name_of(*pod.wanted)}});
  uint64_t cookie = pod.netns->cookie;
  if (pod.captured)
    close(cookie, pod.wanted->uid);
  else
    check(capture_.remove_pod(cookie), "removing a pod");  // it was never in force
  leave(pod, true);
  tell_all(PodGone{cookie});
}

// The object is gone.
void Warden::forget(LocalPod& pod) {
  if (pod.netns) lose(pod);
  if (pod.cgroup) check(capture_.remove_cgroup(pod.cgroup->id), "removing a pod's cgroup");
  for (auto& [cookie, leaving] : leaving_) {
    if (leaving.uid == pod.wanted->uid && !leaving.gone) declare_gone(cookie, leaving);
  }
}

void Warden::declare_gone(uint64_t cookie, Leaving& leaving) {
  leaving.gone = true;
  leaving.since = reactor_.now();
  tell_all(PodGone{cookie});
}

void Warden::leave(LocalPod& pod, bool gone) {
  uint64_t cookie = pod.netns->cookie;
  for (const SockAddr& probe : pod.probes) check(capture_.clear_probe(probe), "removing a probe");
  Leaving leaving{.uid = pod.wanted->uid,
                  .path = pod.netns_path,
                  .netns = std::move(*pod.netns),
                  .gone = gone,
                  .since = reactor_.now()};
  for (auto& proxy : proxies_) {
    if (proxy->told.erase(cookie) > 0) leaving.waiting.insert(proxy->channel.get());
  }
  leaving_.insert_or_assign(cookie, std::move(leaving));
  LocalPod left{.wanted = pod.wanted, .cgroup = pod.cgroup, .cgroup_state = pod.cgroup_state};
  pod = std::move(left);
}

// Gives namespaces back that no proxy uses any more.
void Warden::finish_leaving() {
  for (auto entry = leaving_.begin(); entry != leaving_.end();) {
    Leaving& leaving = entry->second;
    if (!leaving.gone && !still_names(leaving.path, leaving.netns)) declare_gone(entry->first, leaving);
    bool late = leaving.gone && reactor_.now() - leaving.since >= kReleaseDeadline;
    if (late && !leaving.waiting.empty() && !std::exchange(leaving.warned, true)) {
      log::warn(log::Component::warden, "the proxy still holds descriptors of a pod that is gone",
                {{"uid", leaving.uid}, {"cookie", entry->first}});
    }
    if (!leaving.waiting.empty() && !late) {
      ++entry;
      continue;
    }
    if (retired_) {
      // The successor's sessions may need it.
    } else if (auto removed = remove_source_route(leaving.netns.fd.get(), options_.proc); !removed) {
      log::debug(log::Component::warden, removed.error().message, {{"uid", leaving.uid}});
    }
    entry = leaving_.erase(entry);
  }
}

void Warden::release_pods() {
  LocalPods pods;
  for (const auto& [uid, pod] : pods_) {
    auto out = std::make_shared<model::Workload>(*pod.wanted);
    out->enrolled = false;
    pods.push_back(std::move(out));
  }
  set_pods(std::move(pods));
  released_ = true;
}

void Warden::retire() {
  retired_ = true;
  capture_.let_go();
  for (io::Timer* timer : {&beat_, &audit_, &orphaned_}) timer->cancel();
}

void Warden::follow_retired() {
  finish_leaving();
  for (auto& [uid, pod] : pods_) {
    if (!pod.netns) continue;
    if (!still_there(pod))
      lose(pod);
    else if (!wants_capture(*pod.wanted))
      unenrol(pod);
  }
  if (!is_superseded()) return;
  for (auto& proxy : proxies_) {
    if (proxy->phase == Proxy::Phase::ready && !std::exchange(proxy->superseded, true))
      proxy->channel->send(Superseded{});
  }
}

void Warden::leave_pods() {
  for (auto& [uid, pod] : pods_) {
    if (!pod.netns) continue;
    check(capture_.remove_pod(pod.netns->cookie), "removing a pod");
    leave(pod, true);
  }
  for (const auto& [cookie, uid] : closed_) check(capture_.remove_pod(cookie), "removing a lost pod");
  closed_.clear();
  for (auto& [cookie, leaving] : leaving_) leaving.waiting.clear();
  finish_leaving();
}

void Warden::close(uint64_t cookie, const std::string& uid) {
  check(capture_.close_pod(cookie), "closing a lost pod");
  if (uid.empty())
    closed_.try_emplace(cookie, uid);
  else
    closed_.insert_or_assign(cookie, uid);
}

// The pod, whose object is well, is not to be in the mesh: what was closed on its account is opened.
void Warden::release_closed(const LocalPod& pod) {
  std::erase_if(closed_, [&](const auto& entry) {
    const auto& [cookie, uid] = entry;
    bool its = uid.empty() ? lives_in(pod, cookie) : uid == pod.wanted->uid;
    if (its) check(capture_.remove_pod(cookie), "removing a lost pod");
    return its;
  });
}

// An object alone is no proof: the namespace it names must have its addresses.
bool Warden::lives_in(const LocalPod& pod, uint64_t cookie) const {
  const model::Workload& wanted = *pod.wanted;
  struct stat file{};
  if (wanted.host_network || wanted.addresses.empty()) return false;
  std::vector<std::string> paths{wanted.netns};
  if (auto cgroup = find_pod_cgroup(options_.kubepods, wanted.uid); cgroup && wanted.netns.empty()) {
    paths.clear();
    for (int pid : processes_.in_cgroup(cgroup->path)) paths.push_back(processes_.netns_path(pid));
  }
  auto inode = capture_.steered_inode(cookie);
  auto path = std::ranges::find_if(
      paths, [&](const auto& one) { return ::stat(one.c_str(), &file) == 0 && file.st_ino == inode; });
  if (path == paths.end()) return false;
  auto netns = open_netns(*path);
  if (!netns || netns->cookie != cookie) return false;
  auto present = addresses_in(netns->fd.get());
  return present && std::ranges::all_of(wanted.addresses, [&](const Addr& address) {
           return std::ranges::find(*present, address) != present->end();
         });
}

void Warden::sweep_closed() {
  std::erase_if(closed_, [&](const auto& entry) {
    if (capture_.steered_inode(entry.first) != 0) return false;
    check(capture_.remove_pod(entry.first), "removing a dead pod");
    return true;
  });
}

// What an earlier process told the kernel and nobody wants any more. A steered namespace stays closed:
// whether its pod left on purpose is for the pod's own object to say.
void Warden::drop_adopted() {
  adoption_settled_ = true;
  if (!capture_.adopted()) return;
  std::set<uint64_t> cookies, cgroups;
  std::vector<SockAddr> probes;
  for (auto& [uid, pod] : pods_) {
    if (pod.netns) cookies.insert(pod.netns->cookie);
    if (pod.cgroup) cgroups.insert(pod.cgroup->id);
    probes.insert(probes.end(), pod.probes.begin(), pod.probes.end());
  }
  for (const auto& pod : capture_.pods()) {
    if (cookies.contains(pod.netns_cookie)) continue;
    // One that was about to join was not in force yet.
    if (pod.enrolment == NM_ENROL_ON && capture_.steered(pod.netns_cookie))
      close(pod.netns_cookie, "");
    else
      check(capture_.remove_pod(pod.netns_cookie), "removing an old pod");
  }
  for (uint64_t cookie : capture_.steered_pods()) {
    if (!cookies.contains(cookie)) close(cookie, "");
  }
  for (auto& [uid, pod] : pods_) {
    if (!wants_capture(*pod.wanted)) release_closed(pod);
  }
  for (const auto& cgroup : capture_.cgroups()) {
    if (!cgroups.contains(cgroup.id)) check(capture_.remove_cgroup(cgroup.id), "removing an old cgroup");
  }
  for (const SockAddr& probe : capture_.probes()) {
    if (std::ranges::find(probes, probe) == probes.end())
      check(capture_.clear_probe(probe), "removing an old probe");
  }
}

}  // namespace nodemesh::warden

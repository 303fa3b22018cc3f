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

bool is_global(const Addr& address) {
  static const Cidr kLocal[] = {*Cidr::parse("fe80::/10"), *Cidr::parse("169.254.0.0/16")};
  return !address.is_loopback() && !address.is_unspecified() &&
         std::ranges::none_of(kLocal, [&](const Cidr& range) { return range.contains(address); });
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
             {{"pod", pod.name()}, {"reason", why}});
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
  bool enrolled = pod.wants_capture();
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
    if (wanted.addresses.empty()) return fail("Pod " + pod.name() + " has no address in status.podIPs yet");
    auto netns = open_netns(wanted.netns);
    if (!netns) return std::unexpected(std::move(netns.error()));
    return FoundNamespace{std::move(*netns), wanted.netns};
  }
  auto cgroup = find_pod_cgroup(options_.kubepods, wanted.uid);
  if (!cgroup) {
    return fail(Reason::POD_UNKNOWN,
                "Pod " + pod.name() + " has no cgroup below " + options_.kubepods + " yet");
  }
  auto found = find_pod_netns(processes_, cgroup->path, wanted.addresses);
  if (found) return found;
  return fail(found.error().reason, "Pod " + pod.name() + ", " + cgroup->path + ": " + found.error().message);
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
    return fail(path + " already belongs to Pod " + other->name() + ": give each Pod its own");
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
  return fail(Reason::POD_UNKNOWN, "Pod " + pod.name() + " has no address yet");
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
              {{"pod", pod.name()}, {"reason", pod.route.missing}});
  }
  log::info(log::Component::warden, "pod enrolled",
            {{"pod", pod.name()}, {"cookie", pod.netns->cookie}, {"live", pod.live ? "true" : "false"}});
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
      return fail("Pod " + pod.name() + ": no interface in " + pod.netns_path + " has the address " +
                  address.to_string());
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

}  // namespace nodemesh::warden

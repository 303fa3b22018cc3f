// How pods leave: one by its label, its end or its cgroup, all of them at the end of a mesh or of a warden.
#include <sys/stat.h>

#include <algorithm>

#include "base/log.h"
#include "warden/warden.h"

namespace nodemesh::warden {
namespace {

constexpr auto kReleaseDeadline = seconds(1);

}  // namespace

// The label went away: new connections go directly from now on, open sessions run to their end.
void Warden::unenrol(LocalPod& pod) {
  log::info(log::Component::warden, "pod un-enrolled", {{"pod", pod.name()}});
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
  log::info(log::Component::warden, "pod's network namespace is gone", {{"pod", pod.name()}});
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
    else if (!pod.wants_capture())
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
    if (!pod.wants_capture()) release_closed(pod);
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

// Where a pod's processes live in the cgroup2 tree: kubelet makes one directory per pod below its kubepods
// directory, named after the pod's uid in one of two shapes. Finding is a few stat(2) calls; the watch says
// when it is worth looking again. The warden's thread only.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "base/fd.h"
#include "base/reason.h"
#include "io/reactor.h"

namespace nodemesh::warden {

// Below `kubepods` (".../kubepods" or ".../kubepods.slice"), for both cgroup drivers and all three QoS
// classes, the directories that kubelet may give the pod `uid`. Pure. Empty for a uid that is no plain file
// name.
std::vector<std::string> pod_cgroup_candidates(const std::string& kubepods, std::string_view uid);

struct PodCgroup {
  std::string path;
  uint64_t id = 0;  // as the kernel and BPF programs name it: the inode
  auto operator<=>(const PodCgroup&) const = default;
};
// The pod's directory if kubelet has made it.
std::optional<PodCgroup> find_pod_cgroup(const std::string& kubepods, std::string_view uid);

// Whether a process is in the group or below; true where the kernel does not say.
bool has_processes(const std::string& cgroup);
// Whether one other than `pid` is in the group itself; true where the kernel does not say, unless the group
// is gone.
bool has_others(const std::string& cgroup, int pid);
// Ids of all groups below this one.
std::set<uint64_t> cgroups_below(const std::string& cgroup);
// The pod's group that a process is in or below, by its path in the cgroup2 hierarchy as /proc/<pid>/cgroup
// has it on the host; empty when the path is no pod's. Pure.
std::string pod_above(std::string_view process_cgroup);
// The kubepods directory above a pod's process, by its path in the cgroup2 hierarchy as /proc/<pid>/cgroup
// has it on the host; empty when the path is no pod's. Pure.
std::string kubepods_above(std::string_view process_cgroup);

// Calls `changed` (on the reactor, once per burst) when a directory appears or goes below kubepods or one of
// its QoS classes. A loss of events is a change too; what the watch cannot see, the caller's poll must.
class KubepodsWatch final : private io::EventHandler {
 public:
  KubepodsWatch(io::Reactor& reactor, std::string kubepods, std::move_only_function<void()> changed);
  ~KubepodsWatch();
  Result<> start();
  // Also when the first process enters this pod's group, or the last one leaves.
  void follow(const std::string& pod_cgroup);

 private:
  void on_events(uint32_t events) override;
  void watch_classes();

  io::Reactor& reactor_;
  const std::string kubepods_;
  std::move_only_function<void()> changed_;
  Fd inotify_;
};

}  // namespace nodemesh::warden

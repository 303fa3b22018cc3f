// Processes of the host by the cgroup they are in, and their network namespaces: how a pod's namespace is
// found without a word from a CNI plugin. Sees the whole host through a procfs of its first pid namespace,
// although the warden lives in a container with a pid and a cgroup namespace of its own. Reads the file
// system only; the warden's thread.
#pragma once

#include <sys/types.h>

#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/addr.h"
#include "base/reason.h"
#include "warden/cgroups.h"
#include "warden/namespaces.h"

namespace nodemesh::warden {

class HostProcesses {
 public:
  // `proc`: the host's, "/host/proc" in a container.
  explicit HostProcesses(std::string proc) : proc_(std::move(proc)) {}

  // Moves this thread into the cgroup namespace of the host's first process, so that paths in the host's
  // procfs are those of the host. Does nothing where it is there already. Needs CAP_SYS_ADMIN and
  // CAP_SYS_PTRACE.
  Result<> enter_host_cgroups() const;
  // Process ids, as `proc` counts them, in the cgroup2 directory and below.
  std::vector<int> in_cgroup(const std::string& directory) const;
  std::string netns_path(int pid) const;
  // Its cgroup2 path as the host sees it; empty when the process is gone.
  std::string cgroup_of(int pid) const;
  // Ids of all processes that are called one of `names` (comm, proc_pid_comm(5)).
  std::vector<int> named(std::initializer_list<std::string_view> names) const;
  // Its real user; nothing when the process has ended.
  std::optional<uid_t> user_of(int pid) const;
  // Of the host's first process, where host-network pods are.
  std::string host_netns_path() const { return netns_path(1); }

 private:
  std::vector<int> search(const std::string& directory) const;
  std::string proc_;
};

// `directory` as /proc/<pid>/cgroup names it, by the text of /proc/self/mountinfo; empty when it lies in no
// cgroup2 mount. Pure.
std::string cgroup_path_of(std::string_view mountinfo, std::string_view directory);
// Whether the text of a /proc/<pid>/cgroup says that the process is in the cgroup2 group `path` or below.
// Pure.
bool is_in_cgroup(std::string_view text, std::string_view path);

// The cgroup2 path of a process of `user` in the group `pod`; both as the host has them. Empty while there is
// none.
std::string find_user_in(const HostProcesses& processes, const std::string& host_cgroup,
                         const std::string& pod, uid_t user);
// The cgroup2 path of kubelet, under any of the names that distributions give it. Only root's processes
// outside of `kubepods` count: in a pod anybody may call himself so. Empty: not found.
std::string find_kubelet(const HostProcesses& processes, const std::string& kubepods);

struct FoundNamespace {
  NetNs netns;
  std::string path;
};
// The network namespace of the pod whose cgroup this is: that of its processes, with all of `addresses`, and
// not the host's. Errors: POD_UNKNOWN while no process runs; INTERNAL with what is wrong otherwise, among it
// that two of its namespaces would do, or that they are more than 256, which a process without rights can
// make and nobody should wait for.
Result<FoundNamespace> find_pod_netns(const HostProcesses& processes, const std::string& cgroup,
                                      const std::vector<Addr>& addresses);
// A path that names `netns` by another process of the cgroup; empty: none is left.
std::string find_same_netns(const HostProcesses& processes, const std::string& cgroup, const NetNs& netns);

}  // namespace nodemesh::warden

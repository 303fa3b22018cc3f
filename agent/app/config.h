// The command line of nodemesh-warden, and what can be said of it before anything is touched. Values;
// start-up only.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>

#include "app/sandbox.h"
#include "base/reason.h"
#include "kube/cluster.h"

namespace nodemesh::app {

struct WardenConfig {
  kube::SourceChoice source;
  std::string snapshot;  // a file, for a start while the API server is away
  std::string node;
  std::string run_dir;
  std::string bpf_dir;
  std::string kubepods;  // empty: found from our own cgroup
  std::string host_cgroup = "/sys/fs/cgroup";
  std::string proxy_cgroup;
  std::string own_pod;         // its cgroup2 directory; found, not told
  std::string own_cgroup;      // so too, where the proxy's was not told
  std::string kubelet_cgroup;  // may be empty
  std::string proc = "/proc";
  bool fail_open = false;
  bool strict = false;
  bool allow_hybrid = false;
  bool clean_exit = false;  // SIGTERM takes everything out of the kernel
  std::string daemonset;    // it does so too once the DaemonSet of this name is deleted
  bool standby = false;     // wait for another warden of the node to end, and at SIGTERM give way to the next
  bool supervised = false;  // this is the child already
  uint32_t workers = 64;    // the most a proxy may have
  uid_t proxy_uid = kProxyUser;
  gid_t proxy_gid = kProxyUser;
  std::string log_format = "text";

  bool operator==(const WardenConfig&) const = default;
};

// Exactly one of the two: what to do, or the exit code when there is nothing to do (help was printed, or what
// is wrong with the command line).
struct ParsedCommand {
  WardenConfig config;
  int exit_code = -1;  // -1: go on
};
ParsedCommand parse_warden_command(int argc, const char* const* argv);

// Fails where cgroup v1 hierarchies are mounted besides cgroup2 and `allow_hybrid` is not given, and where
// there is no cgroup2 at all. `mounts` is the text of /proc/mounts. Pure.
Result<> check_cgroup_mode(std::string_view mounts, bool allow_hybrid);
// `path` must be a directory in a cgroup2 file system; `flag` names the option in the message.
Result<> check_cgroup2_directory(const std::string& path, std::string_view flag);
// A name that is safe as one component of a path: [a-z0-9.-], 1 to 253 characters.
Result<> check_node_name(std::string_view name);
Result<std::string> read_text_file(const std::string& path);

}  // namespace nodemesh::app

// `meshctl node run`: one standalone node from one command. Makes the node's cgroups, run directory and pin
// directory, then supervises nodemesh-warden and nodemesh-proxy (and a certificate authority, if asked) until
// a signal, and leaves nothing behind. It takes over the process.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "app/supervisor.h"
#include "base/reason.h"

namespace nodemesh::app {

struct NodeConfig {
  std::string config_dir;
  std::string node;
  std::string run_dir;         // default /run/nodemesh/<node>
  std::string cgroup;          // default <cgroup2 mount>/nodemesh/<node>
  std::string bpf_dir;         // default /sys/fs/bpf/nodemesh/<node>
  std::string kubelet_cgroup;  // may be empty
  std::string ca = "unix:/run/nodemesh/ca/ca.sock";
  std::string ca_state = "/var/lib/nodemesh/ca";
  std::string cert_lifetime;  // empty: the proxy's default
  std::string log_format;     // empty: text
  uint32_t workers = 0;       // 0: by the number of CPUs
  uint32_t proxy_uid = 65532;
  uint16_t metrics_port = 0, ready_port = 0, admin_port = 0;  // 0: the proxy's defaults
  bool with_ca = false, fail_open = false, strict = false, allow_hybrid = false;
  std::vector<std::string> proxy_extra;  // words after `--`, for the proxy

  // Kubelet-shaped: <cgroup>/kubepods/pod<uid>/{warden,proxy}; the uid follows from the node's name.
  std::string kubepods() const { return cgroup + "/kubepods"; }
  std::string agent_pod() const;
};

// Workers of a node with so many CPUs: a quarter, at least 2, at most 8.
uint32_t default_workers(unsigned cpus);
// What to start, in stopping order. `find` gives a program's path by its name. Pure.
std::vector<ChildSpec> children_of(const NodeConfig& config,
                                   const std::function<std::string(const std::string&)>& find);

// argv[0] is ignored ("run"). Returns the exit code: 0 after a signal, 1 when something cannot start, 2 for
// wrong usage.
int node_run_main(int argc, const char* const* argv);

}  // namespace nodemesh::app

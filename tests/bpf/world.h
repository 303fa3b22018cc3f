// One node with one pod for the BPF tests: a kubepods cgroup with the pod's and the agent's cgroups,
// kubelet's cgroup, a host and a pod network namespace joined by veth, and a BPF file system of the test's
// own. All of it goes with the object.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>

#include "base/addr.h"
#include "base/clock.h"
#include "base/fd.h"
#include "bpf/actor.h"
#include "kernel/capture.h"

namespace nodemesh::test {

inline SockAddr at(const char* text) {
  return SockAddr::parse(text).value();
}

class World {
 public:
  World();
  ~World();
  World(const World&) = delete;
  World& operator=(const World&) = delete;

  static inline const Addr kHost4 = Addr::v4(10, 66, 0, 1);
  static inline const Addr kOther4 = Addr::v4(10, 66, 0, 9);  // the host's second address
  static inline const Addr kPod4 = Addr::v4(10, 66, 0, 2);
  static inline const Addr kHost6 = *Addr::parse("fd66::1");
  static inline const Addr kPod6 = *Addr::parse("fd66::2");

  std::string directory;  // cgroup2 directory of this node
  std::string kubepods, pod_cgroup, container_cgroup, agent_cgroup, kubelet;
  std::string pin_dir;
  Fd host, pod;         // network namespaces
  uint64_t cookie = 0;  // of the pod's

  std::optional<Actor> app;       // a process of the pod
  std::optional<Actor> proxy;     // of the agent, in the pod's namespace
  std::optional<Actor> stranger;  // outside kubepods, in the host's namespace
  std::optional<Actor> kubelet_process;

  kernel::CaptureOptions options() const;
  // Opens (or adopts) and fills in what the warden would.
  void open();
  void open(const kernel::CaptureOptions& options);
  kernel::Capture& capture() { return *capture_; }
  // Forgets the Capture as a dying warden does.
  void close() { capture_.reset(); }
  // Listeners of all kinds, the pod's entry and the steering.
  void enrol();
  void enrol(std::span<const Addr> addresses);

  Fd outbound, inbound, hbone;

 private:
  std::unique_ptr<kernel::Capture> capture_;
};

// The next connection, within 20 s; empty if none came.
Fd accept_one(int listener);
// True if nothing is waiting to be accepted.
bool nobody_waits(int listener);
SockAddr local_name(int fd);
SockAddr peer_name(int fd);
// Calls `what` until it is true, for at most 30 s.
template <class What>
bool eventually(What what) {
  for (auto end = Monotonic::now() + std::chrono::seconds(30); Monotonic::now() < end;)
    if (what()) return true;
  return what();
}

}  // namespace nodemesh::test

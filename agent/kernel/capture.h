// The BPF side of one node: programs, links and maps, loaded or adopted from their pins. Owned by the
// warden's thread and used on that thread only; it holds no traffic and parses nothing from a pod.
// Destruction closes descriptors and leaves every pin in force (pods stay captured); `detach_all` is the
// uninstall. Every failure names the object and what to do, and leaves the maps as they were.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/addr.h"
#include "base/reason.h"

namespace nodemesh::kernel {

struct CaptureOptions {
  std::string kubepods_cgroup;  // directory in the cgroup2 file system; all pods and the agent live below it
  std::string
      kubelet_cgroup;  // kubelet's own cgroup2 directory, for probes; empty: probes are not recognised
  std::string
      pin_dir;  // a directory in a BPF file system; made if absent. Pins go to <pin_dir>/v<NM_ABI_VERSION>
  bool fail_open = false;  // without a listener, enrolled pods' traffic passes untouched
  bool strict = false;     // a pod nobody has named is denied even while no warden beats
  // A node that is not captured yet stays so until attach(): pods that run there are unknown until somebody
  // has named them, and would be refused for so long.
  bool attach_late = false;
};

struct Counted {
  std::vector<uint64_t> drops;     // by Reason, NM_REASON_COUNT entries
  std::vector<uint64_t> counters;  // by enum nm_counter, NM_COUNT_COUNTERS entries
};

struct Finding {
  enum class Severity { info, problem };
  Severity severity;
  std::string text;  // a sentence: the hook, what is wrong, what to do
};

class Capture {
 public:
  // Loads the programs, adopting pinned maps and swapping pinned links to the new programs (atomic per hook;
  // nothing is unattached in between). Steering of pods that are still there is swapped too; that of dead
  // namespaces goes. Pins of another NM_ABI_VERSION are taken over but for their maps: their pods stay closed
  // until they are set again. Call `kernel::check` (probe.h) first: it explains what is missing.
  static Result<std::unique_ptr<Capture>> open(const CaptureOptions& options);
  ~Capture();
  Capture(const Capture&) = delete;
  Capture& operator=(const Capture&) = delete;

  // True if pins of an earlier process were found and are in use.
  bool adopted() const;
  // Whether the pods' connections are asked about: at once, but where the node was not captured before and
  // `attach_late` is set.
  bool attached() const;
  // Puts what attach_late held back into force. What the maps do not name is unknown from then on. Does
  // nothing the second time. After an error some hooks may be in force: detach_all().
  Result<> attach();

  // Writes the heartbeat (CLOCK_MONOTONIC now). Once a second; after 5 s without it unknown pods pass (not:
  // enrolled).
  Result<> beat();
  Result<> set_flags(bool fail_open, bool strict);

  // Cgroups whose processes are the proxy and the opener: their sockets are never captured. `id` as of
  // cgroup_id().
  Result<> add_agent(uint64_t id);
  Result<> remove_agent(uint64_t id);

  // The state of a pod's cgroup, at most three levels below kubepods. It decides only while the pod's
  // namespace is not in the pods map: no entry in either map means unknown, which is denied while the
  // heartbeat is fresh.
  Result<> set_cgroup(uint64_t id, nm_enrolment enrolment);
  Result<> remove_cgroup(uint64_t id);

  // A pod by its namespace's cookie. This entry alone decides once it exists, for both directions, so that
  // enrolling and un-enrolling is this one write. 1 to NM_POD_ADDRESSES addresses. Set it before `steer`, and
  // both before enrolling.
  Result<> set_pod(uint64_t netns_cookie, std::span<const Addr> addresses, nm_enrolment enrolment);
  // Takes away the pod's steering, listeners and entry, in this order. Not an error if it is unknown.
  // The namespace is as it was before: only for one that leaves the mesh on purpose, or is dead.
  Result<> remove_pod(uint64_t netns_cookie);
  // Takes away listeners and entry and leaves the steering: connections from outside find no listener and are
  // dropped (NO_LISTENER) until the pod is set again, or removed. Not an error if it is unknown.
  Result<> close_pod(uint64_t netns_cookie);

  // Attaches (and pins) the inbound program in the namespace `netns_fd` (borrowed; /proc/<pid>/ns/net).
  // Again: swaps it.
  Result<> steer(int netns_fd, uint64_t netns_cookie);
  Result<> unsteer(uint64_t netns_cookie);
  bool steered(uint64_t netns_cookie) const;
  // Inode of the namespace that is steered; 0: it is dead, or not steered.
  uint64_t steered_inode(uint64_t netns_cookie) const;

  // Publishes a pod's listening sockets (borrowed, made in its namespace): NM_LISTENER_COUNT × workers of
  // them, ordered by kind, then worker. Each atomically replaces the one before in its place, so that at any
  // moment every connection finds a listener; those of workers that there are no more go last. An entry
  // vanishes with the last descriptor of its socket. Set the pod before. What was replaced before an error
  // stays replaced.
  Result<> set_listeners(uint64_t netns_cookie, std::span<const int> listeners);
  // By one write none is in force any more. Not an error if there are none.
  Result<> clear_listeners(uint64_t netns_cookie);
  // True if a worker's listener of that kind is published and open.
  bool has_listener(uint64_t netns_cookie, nm_listener kind) const;

  // SO_COOKIE of the listener that is published and open; 0: none.
  uint64_t listener(uint64_t netns_cookie, nm_listener kind, uint32_t worker) const;

  // Ports of pods that kubelet probes.
  Result<> set_probe(const SockAddr& pod_port);
  Result<> clear_probe(const SockAddr& pod_port);

  // What the maps hold: to reconcile after `adopted()`.
  struct Pod {
    uint64_t netns_cookie;
    std::vector<Addr> addresses;
    nm_enrolment enrolment;
  };
  std::vector<Pod> pods() const;
  struct Cgroup {
    uint64_t id;
    nm_enrolment enrolment;
  };
  std::vector<Cgroup> cgroups() const;
  std::vector<uint64_t> agents() const;
  std::vector<SockAddr> probes() const;
  std::vector<uint64_t> steered_pods() const;

  // Sums over CPUs since the maps were first made (they outlive processes).
  Counted read_counters() const;

  // From now on the kernel's side is another process's, which adopts it: whatever is asked of this object
  // changes nothing any more and succeeds.
  void let_go();
  // Whether another process has beaten since our last heartbeat.
  bool taken_by_another() const;

  // Compares what the kernel runs with what we attached: a missing or replaced program is a problem, a
  // foreign program on the same hook (ours still runs) is information. Cheap enough for once a minute.
  std::vector<Finding> audit() const;

  // Removes every link, steering and pin of ours: no pod is captured afterwards. The object is unusable then.
  Result<> detach_all();

 private:
  struct State;
  explicit Capture(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

// The kernel's id of a cgroup2 directory.
Result<uint64_t> cgroup_id(const std::string& directory);
// The cookie of the network namespace in which `socket_fd` (any socket, borrowed) was made.
Result<uint64_t> netns_cookie(int socket_fd);
// Removes what a process that is gone has pinned at `pin_dir`, of every version; for uninstall without
// loading.
Result<> remove_pins(const std::string& pin_dir);

}  // namespace nodemesh::kernel

// The warden's state: this node's pods, what the kernel was told of each, and the proxies on the channel. It
// compares what the pod source wants with what is, five times a second and at every event, and does what is
// missing: so a cgroup that comes late, an address that is not there yet and a namespace that was replaced
// are all the same case. A pod that should be enrolled and cannot be is denied by the kernel and its reason
// logged once. One thread, never blocks on a pod or a proxy, parses nothing that came from either.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "base/log.h"
#include "io/reactor.h"
#include "kernel/capture.h"
#include "warden/cgroups.h"
#include "warden/channel.h"
#include "warden/namespaces.h"
#include "warden/opener.h"
#include "warden/pod_source.h"
#include "warden/processes.h"
#include "warden/source_route.h"

namespace nodemesh::warden {

struct WardenOptions {
  std::string kubepods;      // cgroup2 directory
  std::string proxy_cgroup;  // cgroup2 directory of proxy and opener
  // Looks for that directory anew: a container that comes back has another. Empty result: there is none now.
  // Empty function: it never changes.
  std::function<std::string()> find_proxy;
  std::string own_cgroup;      // cgroup2 directory of this process; needed with find_proxy
  std::string proc = "/proc";  // the host's procfs; its sys/net may be written
  uint32_t max_workers = kMaxWorkers;
  uint64_t generation = 1;
  bool fail_open = false, strict = false;  // as the kernel was told; passed on for display
  bool hands_over = false;                 // retire() may be called
};

class Warden final : private ProxyChannelEvents {
 public:
  // All borrowed and outliving it.
  Warden(io::Reactor& reactor, kernel::Capture& capture, Opener& opener, WardenOptions options);
  ~Warden();

  // Marks the agent's cgroup, starts heartbeat, watch and audit.
  Result<> start();
  void set_pods(LocalPods pods);
  void accept_proxy(Fd socket, pid_t peer);
  bool has_proxy() const { return !proxies_.empty(); }
  // No pod is in the mesh any more: new connections pass untouched, those that are open go on.
  void release_pods();
  // Another warden serves the pods from now on. This one changes nothing in the kernel or a namespace any
  // more, learns of no new pod, and makes sockets for what its proxies have open; it tells them when their
  // successor accepts for all pods.
  void retire();
  // Gives every pod's namespace back as it was found, whether a proxy still uses it or not. For a clean end.
  void leave_pods();

 private:
  static constexpr milliseconds kOrphaned{5000};  // without a proxy, then its entries in the kernel go

  // One pod that the source names.
  struct LocalPod {
    model::Shared<model::Workload> wanted;
    std::optional<PodCgroup> cgroup;
    nm_enrolment cgroup_state = NM_ENROL_OFF;
    // The rest only while enrolled, or on the way there.
    std::optional<NetNs> netns;
    std::string netns_path;
    std::vector<Addr> addresses;  // as the kernel knows them
    std::vector<Addr> found;      // those of the namespace, for as long as the object names none
    SourceRoute route;
    std::vector<SockAddr> probes;
    PodListeners listeners;
    bool opening = false;    // an order for listeners is out
    bool captured = false;   // the kernel's entry says ON
    bool live = false;       // enrolled while it ran: captured only when the proxy is ready, so nothing fails
    bool published = false;  // the kernel has the listeners
    std::string complaint;   // what was logged last

    size_t workers() const { return listeners[0].size(); }
    std::string name() const { return wanted->ns + "/" + wanted->name; }
    bool wants_capture() const { return wanted->enrolled && !wanted->host_network; }
  };
  // A namespace whose pod left, until every proxy has let go of it.
  struct Leaving {
    std::string uid;
    std::string path;
    NetNs netns;
    bool gone = false;  // the pod is gone; otherwise it was un-enrolled and its sessions may go on
    std::set<ProxyChannel*> waiting;
    Monotonic::time_point since;
    bool warned = false;
  };
  struct Proxy {
    enum class Phase { hello, returning, ready };
    std::unique_ptr<ProxyChannel> channel;
    uint64_t id = 0;
    Phase phase = Phase::hello;
    uint32_t workers = 0;
    std::map<uint64_t, PodListeners> returned;  // by cookie, checked
    std::set<uint64_t> told;                    // cookies it was given
    bool joined = false;                        // has been told of the pods: ready, and the source has spoken
    bool snapshot_due = false;
    bool superseded = false;  // has been told
    bool draining = false;    // has no listeners any more; needs sockets for what is under way
    uint32_t ordered = 0;     // sockets asked of the opener for it
  };

  // pods (warden_pods.cc)
  void reconcile();
  void reconcile_pod(LocalPod& pod);
  void spare_running_pods();
  void forget_dead_agents(uint64_t own);
  void follow_cgroup(LocalPod& pod, bool enrolled);
  Result<> find_namespace(LocalPod& pod);
  Result<FoundNamespace> open_namespace(const LocalPod& pod) const;
  Result<> find_addresses(LocalPod& pod) const;
  bool still_there(LocalPod& pod) const;
  Result<> enrol(LocalPod& pod);
  Result<> refresh(LocalPod& pod);
  void set_probes(LocalPod& pod);
  void complain(LocalPod& pod, const std::string& why, log::Level level = log::Level::warn);
  void check(const Result<>& done, std::string_view what);
  LocalPod* find_by_cookie(uint64_t cookie);
  Pod describe(const LocalPod& pod) const;

  // pods that leave, and a warden that does (warden_leaving.cc)
  void unenrol(LocalPod& pod);
  void lose(LocalPod& pod);
  void forget(LocalPod& pod);
  void leave(LocalPod& pod, bool gone);
  void finish_leaving();
  void declare_gone(uint64_t cookie, Leaving& leaving);
  void follow_retired();
  void close(uint64_t cookie, const std::string& uid);
  void release_closed(const LocalPod& pod);
  bool lives_in(const LocalPod& pod, uint64_t cookie) const;
  void sweep_closed();
  void drop_adopted();

  // listeners and proxies (warden_proxies.cc)
  void on_proxy_message(ProxyChannel& channel, ProxyMessage message, std::vector<Fd> descriptors) override;
  void on_proxy_closed(ProxyChannel& channel, const Error& why) override;
  void refuse(Proxy& proxy, std::string why);
  void on_hello(Proxy& proxy, const Hello& hello);
  void on_returned(Proxy& proxy, const ReturnListeners& returned, std::vector<Fd> descriptors);
  void on_return_done(Proxy& proxy);
  void on_want_sockets(Proxy& proxy, const WantSockets& want);
  void on_takeover_ready(Proxy& proxy, uint64_t cookie);
  void on_gone_ack(Proxy& proxy, uint64_t cookie);
  void on_keys(Proxy& proxy, Fd keys);
  void send_keys(Proxy& proxy);
  void send_kernel_stats(Proxy& proxy);
  void ensure_listeners(LocalPod& pod);
  void on_listeners(const std::string& uid, uint64_t cookie, Result<std::vector<Fd>> made);
  void announce(Proxy& proxy, LocalPod& pod);
  void finish_snapshots();
  void clear_listeners();
  bool is_superseded() const;
  void reply_sockets(Proxy& proxy, Sockets reply, Result<std::vector<Fd>> made);
  Proxy* find_proxy(const ProxyChannel& channel);
  Proxy* find_proxy(uint64_t id);
  bool has_serving_proxy() const;
  void join(Proxy& proxy);
  void announce_to_draining();
  void follow_proxy();
  void leave_dead_proxy();

  template <class Message>
  void tell_all(const Message& message) {
    for (auto& proxy : proxies_) {
      if (proxy->phase == Proxy::Phase::ready) proxy->channel->send(message);
    }
  }

  io::Reactor& reactor_;
  kernel::Capture& capture_;
  Opener& opener_;
  const WardenOptions options_;
  uint64_t own_cookie_ = 0;
  std::map<std::string, LocalPod> pods_;  // by uid
  std::map<uint64_t, Leaving> leaving_;   // by cookie
  // Namespaces whose pod was lost, not taken out of the mesh: by cookie, the pod's uid; empty: not known.
  // Nothing gets into them until their pod is back, opts out, or they are dead.
  std::map<uint64_t, std::string> closed_;
  std::vector<std::unique_ptr<Proxy>> proxies_;
  std::string proxy_cgroup_;
  uint64_t agent_ = 0;        // its id
  bool proxy_moved_ = false;  // perhaps
  Monotonic::time_point looked_{};
  bool released_ = false;  // pods left the mesh for good
  bool retired_ = false;
  uint64_t next_proxy_id_ = 1;
  uint32_t workers_ = 0;  // of the proxies that serve, or of the last that did; 0 before the first
  std::string refusal_;   // logged last, of a proxy that keeps trying
  Fd keys_;               // sealed, never read here
  bool sourced_ = false;  // the source has spoken
  bool adoption_settled_ = false;
  std::set<std::string> audit_findings_;
  KubepodsWatch watch_;
  const HostProcesses processes_;
  io::Timer poll_, beat_, audit_, orphaned_;
};

}  // namespace nodemesh::warden

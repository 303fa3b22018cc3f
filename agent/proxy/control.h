// The control thread of a proxy: keeps configuration, identities and the warden's word on pods, and publishes
// each as immutable values to the workers. It sits on no data path: with it stopped, workers serve on with
// what they have. Owns the workers. Everything runs on its reactor's thread but what ControlPort says.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "base/clock.h"
#include "identity/ca_client.h"
#include "identity/store.h"
#include "io/mailbox.h"
#include "io/reactor.h"
#include "kube/cluster.h"
#include "proxy/slices.h"
#include "proxy/socket_orders.h"
#include "proxy/worker.h"
#include "telemetry/access_log.h"
#include "telemetry/denials.h"
#include "telemetry/registry.h"
#include "translate/translate.h"
#include "warden/channel.h"

namespace nodemesh::proxy {

struct ControlOptions {
  kube::SourceChoice source;
  std::string snapshot_file;  // for a start while the API server is away; empty: none
  std::string node;
  std::string run_dir;
  identity::CaClient::Settings ca;  // the certificate authority
  std::string trust_domain = "cluster.local";
  std::string root_namespace = "istio-system";  // of ConfigMap `istio` and of policies for all namespaces
  std::vector<Cidr> cluster_cidrs;              // of pods, in addition to the Nodes'
  model::UnknownPeer unknown_peer = model::UnknownPeer::hold;
  size_t workers = 2;
  uid_t warden_uid = 0;
  seconds certificate_lifetime{24 * 3600};
  http::HboneTimes hbone_times;
  IdleTimes idle;
  size_t held_limit = 256 << 20;  // bytes, of all workers together
};

class Control final : private ControlPort, private warden::WardenLinkEvents {
 public:
  Control(io::Reactor& reactor, const Clock& clock, ControlOptions options, telemetry::Metrics& metrics,
          telemetry::AccessLog& access_log, telemetry::Denials& denials);
  ~Control();

  // Reads the folder or begins to read the API server, starts the workers, connects to the warden. Errors are
  // one sentence for the operator.
  Result<> start();
  // No new connections; `done` runs when none is left or 30 s have passed. Where another agent of this node
  // will accept for the pods, this one goes on until it does, and then keeps what is open without limit, as
  // long as its warden lives. Where the warden has left and nobody came in its place for 5 s it is over too:
  // where Kubernetes replaces an agent without overlap nobody will until this process ends.
  void stop(std::move_only_function<void()> done);

  // Ends what is open and joins the workers' threads.
  void stop_workers();

  // For the admin port; on the control thread. Of generation 0 until configuration was read.
  const std::shared_ptr<const model::Snapshot>& snapshot() const { return snapshot_; }
  const std::vector<kube::Status>& statuses() const { return statuses_; }
  // When the folder was last translated.
  Monotonic::time_point translated() const { return translated_; }
  const identity::CredentialStore& credentials() const { return credentials_; }
  // Null before start().
  const kube::Source* source() const { return source_.get(); }
  // Why other nodes cannot be told of this node's pods; empty when they can.
  std::string slices_problem() const { return slices_ ? slices_->publisher().problem() : ""; }
  bool warden_connected() const { return link_.connected(); }
  // Why the proxy is not ready; empty when it is.
  std::vector<std::string> not_ready() const;
  struct ListenerRow {  // one worker's
    std::string ns, name;
    nm_listener kind;
    uint16_t port;
  };
  std::vector<ListenerRow> listeners() const;
  std::vector<std::unique_ptr<Worker>>& workers() { return workers_; }
  // Any thread.
  void post(std::move_only_function<void()> work) { mailbox_.post(std::move(work)); }

 private:
  static constexpr std::chrono::seconds kDrainLimit{30};  // for what is open when nobody took over

  struct Announced {
    warden::Pod pod;
    warden::PodListeners waiting;                                // not accepted on yet
    std::array<std::vector<uint16_t>, NM_LISTENER_COUNT> ports;  // of each kind, by worker
    size_t closing = 0;                                          // workers that have not closed it yet
  };

  void ask_sockets(size_t worker, uint64_t cookie, warden::SocketKind kind, uint32_t count) override;
  void pod_closed(size_t worker, uint64_t cookie) override;
  Worker& worker(size_t number) override { return *workers_[number]; }
  size_t worker_count() const override { return options_.workers; }

  void on_warden_connected(const warden::Welcome& welcome) override;
  void on_pod_add(warden::Pod pod, warden::PodListeners listeners) override;
  void on_pod_update(warden::Pod pod) override;
  void on_pod_gone(uint64_t cookie) override;
  void on_sockets(const warden::Sockets& answer, std::vector<Fd> sockets) override;
  void on_keys(Fd keys) override;
  void on_kernel_stats(const warden::KernelStats& stats) override;
  void on_snapshot_sent() override;
  void on_superseded() override;
  void on_warden_closed(const Error& why) override;

  void open_when_known(Announced& announced);
  void open_known();
  void drain(milliseconds limit);
  bool has_enrolled_pods() const;
  void update_slices();
  void open(Announced& announced);
  void reconfigure();
  void give_sockets(const SocketOrder& order, std::vector<Fd> sockets, Reason reason);
  void want_identities();
  void publish_credential(const std::string& uri, std::shared_ptr<const tls::Credential> credential);
  void publish_trust(std::shared_ptr<const tls::TrustBundle> trust);
  void publish_ticket_keys();
  void renew_ticket_keys();
  void store_keys();
  void tick();
  void ask_open();
  void end_drain();
  void expire_series();
  void report_source();
  void watch_workers();
  void ask_kernel_stats();
  size_t rejected() const;

  io::Reactor& reactor_;
  const Clock& clock_;
  const ControlOptions options_;
  telemetry::Metrics& metrics_;
  telemetry::AccessLog& access_log_;
  telemetry::Denials& denials_;
  io::Mailbox mailbox_;
  std::unique_ptr<kube::Source> source_;
  std::optional<Slices> slices_;  // of an API server; goes before the source
  std::shared_ptr<const model::Snapshot> snapshot_;
  std::vector<kube::Status> statuses_;
  translate::TranslateMemory memory_;
  Monotonic::time_point translated_{};
  identity::CaClient ca_;
  identity::CredentialStore credentials_;
  std::shared_ptr<const tls::TicketKeys> ticket_keys_;
  warden::WardenLink link_;
  std::vector<std::unique_ptr<Worker>> workers_;
  std::map<uint64_t, Announced> pods_;
  SocketOrders orders_;
  bool standby_ = false;  // the last word of a warden: another one serves the node
  bool pods_known_ = false, keys_kept_ = false;
  // The warden answers in order: with that to a question asked after all pods were taken up, they are.
  bool taken_up_ = false;
  uint32_t stats_owed_ = 0, taken_up_after_ = 0;
  uint64_t ticks_ = 0;
  std::vector<std::pair<uint64_t, uint64_t>> turns_;  // by worker: the last seen, ticks without another
  io::Deferred keys_due_;  // the warden is to get what is new, once for all news of a turn
  io::Timer ticker_;
  // How it ends.
  bool hands_over_ = false, superseded_ = false, draining_ = false;
  io::Timer handover_timer_, drain_timer_, forsaken_;
  std::move_only_function<void()> drained_;
};

}  // namespace nodemesh::proxy

// One worker: a thread with its reactor, its share of every pod, and all connections it accepted. What it
// needs from other threads comes by its mailbox as immutable or moved values; what it needs from the control
// thread it asks through ControlPort. Made by the control thread before the worker's thread runs; afterwards
// only that thread may touch it, except for post().
#pragma once

#include <deque>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "base/clock.h"
#include "http/hbone.h"
#include "io/buffers.h"
#include "io/mailbox.h"
#include "io/reactor.h"
#include "model/snapshot.h"
#include "proxy/accept.h"
#include "proxy/labels.h"
#include "proxy/overload.h"
#include "proxy/session.h"
#include "telemetry/recorder.h"
#include "tls/context.h"
#include "upstream/balancer.h"
#include "upstream/pool.h"
#include "upstream/stock.h"
#include "warden/channel.h"

namespace nodemesh::proxy {

class Worker;
class InboundTunnel;

// What a worker may ask of the control thread; any worker's thread.
class ControlPort {
 public:
  virtual void ask_sockets(size_t worker, uint64_t cookie, warden::SocketKind kind, uint32_t count) = 0;
  // The worker has closed every descriptor of that pod.
  virtual void pod_closed(size_t worker, uint64_t cookie) = 0;
  virtual Worker& worker(size_t number) = 0;
  virtual size_t worker_count() const = 0;

 protected:
  ~ControlPort() = default;
};

// A pod of this node as one worker sees it.
struct PodState {
  PodState(Worker& owner, warden::Pod announced);
  ~PodState();

  warden::Pod info;
  int family;                               // of the pod's sockets
  io::HeldAccount held_bytes;               // of what its connections hold for peers that do not read
  model::Shared<model::Workload> workload;  // null until a snapshot has it
  std::shared_ptr<const tls::Credential> credential;
  std::string baggage;  // sent with CONNECT and its answer
  upstream::SocketStock stock;
  std::vector<std::unique_ptr<Listener>> listeners;
  std::vector<uint16_t> listener_ports;  // of all workers: connecting to one of them is a loop
  SessionList sessions;
  std::unordered_map<InboundTunnel*, std::unique_ptr<InboundTunnel>> tunnels;
  std::deque<InboundTunnel*> handshakes;  // of `tunnels`, those not finished yet, oldest first

  // That it has open on this worker, as far as fairness counts them.
  size_t connections() const { return sessions.size() + tunnels.size(); }
  upstream::PoolSource pool_source() { return {info.cookie, family, &stock, credential, &held_bytes}; }
};

struct WorkerOptions {
  size_t number = 0;
  size_t descriptor_limit = 0;  // of the process
  uint64_t seed = 0;
  size_t held_limit = 128 << 20;  // bytes kept for peers that do not read
  http::HboneTimes hbone_times;
  IdleTimes idle;
};

class Worker {
 public:
  Worker(const WorkerOptions& options, const Clock& clock, ControlPort& control,
         telemetry::MetricShard& metrics, telemetry::AccessLog& access_log, telemetry::Denials& denials,
         std::vector<std::string> trust_domains);
  ~Worker();
  // After construction and before start(): the TLS contexts, or why there are none.
  Result<> prepare();
  void start();          // runs the reactor in a thread of its own
  void stop_and_join();  // any other thread
  void post(std::move_only_function<void()> work) { mailbox_.post(std::move(work)); }

  // On the worker's thread.
  void set_snapshot(std::shared_ptr<const model::Snapshot> snapshot);
  void set_credential(const std::string& uri, std::shared_ptr<const tls::Credential> credential);
  void set_trust(std::shared_ptr<const tls::TrustBundle> trust);
  // `listeners`: one per kind, this worker's, accepted on from now; empty: the pod keeps those it has.
  // `listener_ports`: those of all workers.
  void add_pod(const warden::Pod& pod, std::vector<Fd> listeners, std::vector<uint16_t> listener_ports);
  void update_pod(const warden::Pod& pod);
  void remove_pod(uint64_t cookie);
  void add_sockets(uint64_t cookie, warden::SocketKind kind, std::vector<Fd> sockets, Reason reason);
  void drain();
  size_t open_connections() const;
  using Pods = std::unordered_map<uint64_t, std::unique_ptr<PodState>>;
  const Pods& pods() const { return pods_; }
  PodState* find_pod(uint64_t cookie);
  PodState* find_pod_by_uid(const std::string& uid);
  // Destroys the session when this turn's handlers have returned.
  void bury(std::unique_ptr<Session> session);
  // What is due once a second; run by a timer of this worker's.
  void tick();
  // Ends the connections that the current snapshot does not allow.
  void redecide();

  const WorkerOptions options;
  const Clock& clock;
  ControlPort& control;
  io::Reactor reactor;
  io::Buffers buffers;
  Overload overload;
  telemetry::Recorder recorder;
  tls::Verifier verifier;
  std::unique_ptr<tls::ServerContext> server_tls;
  std::unique_ptr<tls::ClientContext> client_tls;
  std::unique_ptr<upstream::TunnelPool> pool;
  upstream::Balancer balancer;
  LabelCache labels;
  std::shared_ptr<const model::Snapshot> snapshot;
  std::mt19937_64 random;
  http::H2Limits h2_limits;

 private:
  void refresh_pod(PodState& pod);
  void verify_again();
  void forget_left_pods();

  io::Mailbox mailbox_;
  Pods pods_;
  std::unordered_map<std::string, uint64_t> cookies_;  // of `pods_`, by uid; where two share one, the newer
  std::unordered_map<std::string, std::shared_ptr<const tls::Credential>> credentials_;
  std::vector<std::unique_ptr<Session>> graves_;
  io::Deferred burial_;
  io::Timer ticker_;
  std::thread thread_;
  std::vector<std::string> trust_domains_;
  bool draining_ = false;
};

}  // namespace nodemesh::proxy

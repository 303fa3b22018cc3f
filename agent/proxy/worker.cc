#include "proxy/worker.h"

#include <algorithm>

#include <fmt/format.h>

#include "base/log.h"
#include "proxy/connect.h"
#include "proxy/inbound.h"

namespace nodemesh::proxy {
namespace {

constexpr auto kTick = seconds(1);

}  // namespace

PodState::PodState(Worker& owner, warden::Pod announced)
    : info(std::move(announced)),
      family(info.ipv6 ? AF_INET6 : AF_INET),
      held_bytes(owner.overload.held),
      stock([&owner, cookie = info.cookie](warden::SocketKind kind, uint32_t count) {
        owner.control.ask_sockets(owner.options.number, cookie, kind, count);
      }) {}
PodState::~PodState() = default;

Worker::Worker(const WorkerOptions& worker_options, const Clock& worker_clock, ControlPort& port,
               telemetry::MetricShard& metrics, telemetry::AccessLog& access_log, telemetry::Denials& denials,
               std::vector<std::string> trust_domains)
    : options(worker_options),
      clock(worker_clock),
      control(port),
      overload(*this, worker_options.held_limit),
      recorder(static_cast<uint16_t>(options.number), clock, metrics, access_log, denials, reactor),
      verifier(clock, std::move(trust_domains)),
      balancer(options.seed),
      snapshot(std::make_shared<const model::Snapshot>(model::SnapshotContent{})),
      random(options.seed),
      mailbox_(reactor),
      burial_([this] { graves_.clear(); }),
      ticker_([this] { tick(); }) {}

Worker::~Worker() = default;

Result<> Worker::prepare() {
  auto server = tls::ServerContext::create(verifier, nullptr);
  if (!server) return std::unexpected(server.error());
  server_tls = std::move(*server);
  auto client = tls::ClientContext::create(verifier);
  if (!client) return std::unexpected(client.error());
  client_tls = std::move(*client);
  pool = std::make_unique<upstream::TunnelPool>(reactor, buffers, *client_tls, recorder.metrics,
                                                options.hbone_times);
  return {};
}

void Worker::start() {
  thread_ = std::thread([this] {
    ticker_.arm(reactor, kTick);
    reactor.run();
    // Sessions and tunnels die on the thread that owns them, while everything they refer to still lives:
    // sessions first, since those that wait for the pool tell it so.
    for (auto& [cookie, pod] : pods_) {
      while (pod->sessions.first() != nullptr)
        pod->sessions.first()->abort({Reason::SHUTDOWN, "the agent is stopping"});
    }
    graves_.clear();
    pool.reset();
    for (auto& [cookie, pod] : pods_) pod->tunnels.clear();
    pods_.clear();
    recorder.access_log.flush();
  });
}

void Worker::stop_and_join() {
  post([this] { reactor.stop(); });
  if (thread_.joinable()) thread_.join();
}

void Worker::set_snapshot(std::shared_ptr<const model::Snapshot> next) {
  snapshot = std::move(next);
  labels.clear();
  balancer.forget_unused();
  std::vector<std::string> domains{snapshot->mesh().trust_domain};
  domains.insert(domains.end(), snapshot->mesh().trust_domain_aliases.begin(),
                 snapshot->mesh().trust_domain_aliases.end());
  if (domains != trust_domains_) {
    verifier.set_trust_domains(trust_domains_ = std::move(domains));
    verify_again();
  }
  for (auto& [cookie, pod] : pods_) refresh_pod(*pod);
  redecide();
}

void Worker::refresh_pod(PodState& pod) {
  auto before = std::exchange(pod.workload, snapshot->find_workload_by_uid(pod.info.uid));
  // Tunnels and sessions to resume speak for the service account they were made with.
  if (before != nullptr && pod.workload != nullptr && before->identity != pod.workload->identity) {
    pool->close_pod(pod.info.cookie, {Reason::NO_IDENTITY, "the pod's service account has changed"});
    client_tls->forget_sessions(fmt::format("{:x} ", pod.info.cookie));
    for (auto& [key, tunnel] : pod.tunnels) tunnel->connection().drain();
  }
  pod.baggage = pod.workload != nullptr ? baggage_of(*pod.workload) : std::string();
  auto found = pod.workload != nullptr ? credentials_.find(pod.workload->identity) : credentials_.end();
  pod.credential = found != credentials_.end() ? found->second : nullptr;
}

void Worker::redecide() {
  for (auto& [cookie, pod] : pods_) {
    for (Session* session = pod->sessions.first(); session != nullptr;) {
      Session* next = session->next();
      session->redecide();
      session = next;
    }
  }
}

void Worker::set_credential(const std::string& uri, std::shared_ptr<const tls::Credential> credential) {
  if (credential != nullptr) {
    credentials_[uri] = std::move(credential);
  } else {
    credentials_.erase(uri);
  }
  for (auto& [cookie, pod] : pods_) {
    if (pod->workload != nullptr && pod->workload->identity == uri) refresh_pod(*pod);
  }
}

void Worker::set_trust(std::shared_ptr<const tls::TrustBundle> trust) {
  verifier.set_trust(std::move(trust));
  verify_again();
}

// Whoever is not trusted any more is gone at once.
void Worker::verify_again() {
  pool->verify_again(verifier);
  for (auto& [cookie, pod] : pods_) {
    for (auto& [key, tunnel] : pod->tunnels) {
      tunnel->connection().verify_again(verifier, tls::PeerRole::client);
    }
  }
}

void Worker::add_pod(const warden::Pod& announced, std::vector<Fd> listeners,
                     std::vector<uint16_t> listener_ports) {
  auto& slot = pods_[announced.cookie];
  if (slot == nullptr) slot = std::make_unique<PodState>(*this, announced);
  PodState& pod = *slot;
  if (pod.info.uid != announced.uid) cookies_.erase(pod.info.uid);
  pod.info = announced;
  cookies_[announced.uid] = announced.cookie;
  refresh_pod(pod);
  if (!listener_ports.empty()) pod.listener_ports = std::move(listener_ports);
  if (listeners.empty()) return;
  pod.listeners.clear();
  for (size_t kind = 0; kind < listeners.size(); ++kind) {
    pod.listeners.push_back(
        std::make_unique<Listener>(*this, pod, static_cast<nm_listener>(kind), std::move(listeners[kind])));
  }
}

void Worker::update_pod(const warden::Pod& changed) {
  PodState* pod = find_pod(changed.cookie);
  if (pod == nullptr) return;
  pod->info = changed;
  if (changed.enrolled) return;
  pod->listeners.clear();
  pod->stock.clear({Reason::POD_GONE, "the pod left the mesh"});
  for (auto& [key, tunnel] : pod->tunnels) tunnel->connection().drain();
}

// A pod that left the mesh alive keeps its open connections; with the last one it is forgotten.
void Worker::forget_left_pods() {
  std::vector<uint64_t> left;
  for (const auto& [cookie, pod] : pods_) {
    if (!pod->info.enrolled && pod->sessions.size() == 0) left.push_back(cookie);
  }
  for (uint64_t cookie : left) remove_pod(cookie);
}

size_t Worker::open_connections() const {
  size_t total = 0;
  for (const auto& [cookie, pod] : pods_) total += pod->sessions.size();
  return total;
}

void Worker::remove_pod(uint64_t cookie) {
  auto found = pods_.find(cookie);
  std::unique_ptr<PodState> dying;
  if (found != pods_.end()) {
    PodState& pod = *found->second;
    Error gone{Reason::POD_GONE, "the pod is gone"};
    pod.listeners.clear();
    pool->close_pod(cookie, gone);
    for (auto& [key, tunnel] : pod.tunnels) tunnel->connection().close(gone);
    while (pod.sessions.first() != nullptr) pod.sessions.first()->abort(gone);
    pod.stock.clear(gone);
    auto named = cookies_.find(pod.info.uid);
    if (named != cookies_.end() && named->second == cookie) cookies_.erase(named);
    dying = std::move(found->second);
    pods_.erase(found);
  }
  // Tunnels end with this turn and their objects with the next, so the pod's state goes after both. Nobody
  // finds it any more: a pod announced anew under the same cookie, or a connection handed over, must not meet
  // it.
  reactor.post([this, cookie, dying = std::move(dying)]() mutable {
    reactor.post([this, cookie, dying = std::move(dying)]() mutable {
      dying.reset();
      control.pod_closed(options.number, cookie);
    });
  });
}

void Worker::add_sockets(uint64_t cookie, warden::SocketKind kind, std::vector<Fd> sockets, Reason reason) {
  PodState* pod = find_pod(cookie);
  if (pod == nullptr) return;
  if (sockets.empty()) {
    pod->stock.none(kind,
                    {Reason::NO_SOCKET, "the warden made no socket: " + std::string(reason_text(reason))});
  } else {
    pod->stock.add(kind, std::move(sockets));
  }
}

void Worker::drain() {
  if (std::exchange(draining_, true)) return;
  pool->drain_all();
  for (auto& [cookie, pod] : pods_) {
    pod->listeners.clear();
    for (auto& [key, tunnel] : pod->tunnels) tunnel->connection().drain();
  }
}

PodState* Worker::find_pod(uint64_t cookie) {
  auto found = pods_.find(cookie);
  return found == pods_.end() ? nullptr : found->second.get();
}

PodState* Worker::find_pod_by_uid(const std::string& uid) {
  auto found = cookies_.find(uid);
  return found == cookies_.end() ? nullptr : find_pod(found->second);
}

void Worker::bury(std::unique_ptr<Session> session) {
  graves_.push_back(std::move(session));
  burial_.schedule(reactor);
}

void Worker::tick() {
  forget_left_pods();
  for (auto& [cookie, pod] : pods_) {
    pod->stock.trim(reactor.now());
    for (auto& listener : pod->listeners) listener->retry();
    for (auto& [key, tunnel] : pod->tunnels) {
      if (tunnel->connection().peer_expired(clock.wall())) tunnel->connection().drain();
    }
  }
  pool->drain_expired(clock.wall());
  overload.tick();
  ticker_.arm(reactor, kTick);
}

}  // namespace nodemesh::proxy

#include "upstream/pool.h"

#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include <fmt/format.h>

#include "base/log.h"
#include "io/socket.h"

namespace nodemesh::upstream {
namespace {

constexpr size_t kStreamsPerConnection = 100;

}  // namespace

// The connections of one key, and who waits for a socket to dial another.
class TunnelPool::Group final : public SocketWaiter, public http::HboneOwner {
 public:
  Group(TunnelPool& pool, TunnelKey group_key, PoolSource from)
      : key(std::move(group_key)), source(std::move(from)), pool_(pool) {}
  ~Group() { stop_dialling(); }

  const TunnelKey key;
  PoolSource source;
  struct Pooled {
    std::unique_ptr<http::HboneConnection> connection;
    telemetry::Counted count;
    http::HboneConnection* operator->() const { return connection.get(); }
  };
  std::vector<Pooled> connections;
  std::vector<TunnelWaiter*> waiters;

  // Begins one more connection; true when it is there already (connecting).
  bool dial() {
    if (dialling_) return false;
    Fd socket = source.stock->take(warden::SocketKind::out, pool_.reactor_.now(), this);
    if (!socket) {
      dialling_ = true;
      return false;
    }
    auto made = connect(std::move(socket));
    if (!made) refuse(made.error());
    return made.has_value();
  }

  void on_socket(Fd socket) override {
    dialling_ = false;
    if (auto made = connect(std::move(socket)); !made) return refuse(made.error());
    serve();
  }
  void on_no_socket(const Error& error) override {
    dialling_ = false;
    refuse(error);
  }
  void refuse(const Error& error) {
    while (!waiters.empty()) {
      auto* waiter = waiters.front();
      waiters.erase(waiters.begin());
      waiter->on_no_tunnel(error);
    }
    retire();
  }
  void stop_dialling() {
    if (std::exchange(dialling_, false)) source.stock->cancel(*this);
  }
  void serve() {
    while (!waiters.empty()) {
      auto* connection = pool_.usable(*this);
      if (connection == nullptr) {
        if (!dial()) return;
        continue;
      }
      auto* waiter = waiters.front();
      waiters.erase(waiters.begin());
      waiter->on_tunnel(*connection);
    }
  }

 private:
  // Leaves the pool when nothing is left in it; its code may be on the stack, so it goes when that has
  // returned.
  void retire() {
    if (!connections.empty() || !waiters.empty() || dialling_) return;
    auto self = pool_.groups_.find(key);
    pool_.reactor_.post([gone = std::move(self->second)] {});
    pool_.groups_.erase(self);
  }
  Result<> connect(Fd socket) {
    if (source.family == AF_INET && !key.peer.ip.is_v4()) {
      return fail(Reason::CONNECT_FAILED, "the pod has no IPv6 to reach " + key.peer.to_string());
    }
    auto slash = key.accepted.find('/');
    auto accepted = std::make_shared<tls::AcceptedPeers>();
    accepted->push_back({key.accepted.substr(0, slash), key.accepted.substr(slash + 1)});
    auto ssl = pool_.tls_.connect(source.credential, std::move(accepted),
                                  fmt::format("{:x} {} {}", key.cookie, key.peer.to_string(), key.accepted));
    if (!ssl) return std::unexpected(ssl.error());
    sockaddr_storage native;
    socklen_t size = key.peer.to_native(native, source.family);
    if (::connect(socket.get(), reinterpret_cast<sockaddr*>(&native), size) != 0 && errno != EINPROGRESS) {
      return fail(io::connect_reason(errno),
                  "HBONE connect to " + key.peer.to_string() + ": " + strerrordesc_np(errno));
    }
    auto connection = std::make_unique<http::HboneConnection>(
        http::H2Session::Role::client, pool_.reactor_, pool_.buffers_, std::move(socket), std::move(*ssl),
        *this, pool_.limits_, pool_.times_);
    if (source.account != nullptr) connection->charge_to(*source.account);
    if (auto started = connection->start(); !started) return started;
    connections.push_back({std::move(connection), telemetry::Counted(pool_.metrics_.tunnels_open)});
    return {};
  }

  void on_hbone_request(http::HboneConnection& connection, int32_t id, const http::HeaderBlock&,
                        bool) override {
    connection.session().reset(id, http::H2Error::protocol_error);  // a server may not open streams
  }
  void on_hbone_handshake(http::HboneConnection& connection, const Error& error,
                          Monotonic::duration took) override {
    bool resumed = connection.peer() != nullptr && connection.peer()->resumed;
    pool_.metrics_.tls_handshake(telemetry::TlsSide::client, error.reason, resumed, took);
    if (error.reason != Reason::NONE) {
      log::warn(log::Component::tls, "HBONE handshake failed",
                {{"peer", key.peer.to_string()},
                 {"expected", key.accepted},
                 {"reason", reason_name(error.reason)},
                 {"detail", error.message}});
    }
  }
  void on_hbone_draining(http::HboneConnection&) override {}
  void on_hbone_closed(http::HboneConnection& connection, const Error&) override {
    auto found = std::ranges::find_if(connections,
                                      [&](const auto& held) { return held.connection.get() == &connection; });
    // The connection is still on the stack; it goes when this turn's handlers have returned.
    pool_.reactor_.post([gone = std::move(*found)] {});
    connections.erase(found);
    retire();
  }

  TunnelPool& pool_;
  bool dialling_ = false;
};

TunnelPool::TunnelPool(io::Reactor& reactor, io::Buffers& buffers, tls::ClientContext& tls,
                       telemetry::MetricShard& metrics, const http::HboneTimes& times)
    : reactor_(reactor), buffers_(buffers), tls_(tls), metrics_(metrics), times_(times) {}
TunnelPool::~TunnelPool() = default;

http::HboneConnection* TunnelPool::usable(Group& group) const {
  http::HboneConnection* best = nullptr;
  for (auto& connection : group.connections) {
    auto& session = connection->session();
    size_t room = kStreamsPerConnection;
    if (session.settings_received()) room = std::min<size_t>(room, session.peer_max_streams());
    if (connection->draining() || connection->error().reason != Reason::NONE ||
        session.open_streams() >= room)
      continue;
    if (best == nullptr || session.open_streams() > best->session().open_streams())
      best = connection.connection.get();
  }
  return best;
}

http::HboneConnection* TunnelPool::acquire(const PoolSource& source, const TunnelKey& key,
                                           TunnelWaiter& waiter) {
  auto& group = groups_[key];
  if (group == nullptr) group = std::make_unique<Group>(*this, key, source);
  group->source = source;  // a renewed certificate, or a pod that came back while its connections were ending
  if (auto* connection = usable(*group)) return connection;
  group->waiters.push_back(&waiter);
  if (!group->dial()) return nullptr;
  std::erase(group->waiters, &waiter);
  return usable(*group);
}

void TunnelPool::cancel(TunnelWaiter& waiter) {
  for (auto& [key, group] : groups_) std::erase(group->waiters, &waiter);
}

void TunnelPool::close_pod(uint64_t cookie, const Error& error) {
  for (auto it = groups_.begin(); it != groups_.end();) {
    auto current = it++;
    if (current->first.cookie != cookie) continue;
    Group& group = *current->second;
    group.stop_dialling();
    for (auto& connection : group.connections) connection->close(error);
    group.refuse(error);  // an empty group goes with this, another with its last connection
  }
}

void TunnelPool::verify_again(tls::Verifier& verifier) {
  for (auto& [key, group] : groups_) {
    for (auto& connection : group->connections) connection->verify_again(verifier, tls::PeerRole::server);
  }
}

void TunnelPool::drain_expired(WallClock::time_point now) {
  for (auto& [key, group] : groups_) {
    for (auto& connection : group->connections) {
      if (connection->peer_expired(now)) connection->drain();
    }
  }
}

void TunnelPool::drain_all() {
  for (auto& [key, group] : groups_) {
    for (auto& connection : group->connections) connection->drain();
  }
}

std::vector<http::HboneConnection*> TunnelPool::connections_of(uint64_t cookie) const {
  std::vector<http::HboneConnection*> found;
  for (const auto& [key, group] : groups_) {
    if (key.cookie != cookie) continue;
    for (const auto& held : group->connections) found.push_back(held.connection.get());
  }
  return found;
}

size_t TunnelPool::size() const {
  size_t total = 0;
  for (const auto& [key, group] : groups_) total += group->connections.size();
  return total;
}

}  // namespace nodemesh::upstream

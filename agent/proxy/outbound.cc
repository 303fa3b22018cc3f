#include "proxy/outbound.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "io/socket.h"
#include "proxy/connect.h"
#include "proxy/identify.h"
#include "proxy/worker.h"

namespace nodemesh::proxy {
namespace {

constexpr auto kConnectTimeout = seconds(10);
constexpr auto kKnowTimeout = seconds(5);

size_t owner_of(const upstream::TunnelKey& key, size_t workers) {
  size_t hash = upstream::TunnelKeyHash{}(key);
  return (hash ^ (hash >> 32)) % workers;
}

upstream::TunnelKey tunnel_key(uint64_t cookie, const SockAddr& target, const model::Workload& server) {
  bool unknown = server.mesh == model::Mesh::unknown;
  return {cookie, {target.ip, NM_HBONE_PORT}, server.ns + "/" + (unknown ? "*" : server.service_account)};
}

}  // namespace

void OutboundSession::begin(Worker& worker, Accepted accepted) {
  PodState* pod = worker.find_pod(accepted.pod_cookie);
  if (pod == nullptr) return io::close_with_reset(accepted.fd);
  (new OutboundSession(worker, *pod, std::move(accepted)))->run(std::nullopt);
}

OutboundSession::OutboundSession(Worker& worker, PodState& pod, Accepted accepted)
    : Session(worker, pod, telemetry::Direction::outbound),
      client_(std::move(accepted.fd)),
      begun_(worker.reactor.now()),
      timer_([this] {
        if (transport_ == Transport::unknown) return give_up_asking();
        fail({Reason::CONNECT_TIMEOUT, "no connection to " + target_.to_string() + " in time"});
      }) {
  record_.src = accepted.peer;
  record_.dst = accepted.local;
}

void OutboundSession::stop_waiting() {
  timer_.cancel();
  if (std::exchange(waiting_tunnel_, false)) worker_.pool->cancel(*this);
  if (std::exchange(waiting_socket_, false)) {
    pod_.stock.cancel(*this);
    if (auto* server = worker_.find_pod(server_cookie_)) server->stock.cancel(*this);
  }
}

void OutboundSession::run(std::optional<OutboundDecision> decided) {
  if (auto made = decide(decided); !made) return fail(made.error());
  if (hand_over(*decided)) return;
  connect(*decided);
}

Result<> OutboundSession::decide(std::optional<OutboundDecision>& decided) {
  record_.source = worker_.labels.workload(pod_.workload);
  if (pod_.workload == nullptr)
    return nodemesh::fail(Reason::POD_UNKNOWN, "no Pod object explains the client");
  record_.source_identity = identity_of(pod_.workload);
  for (const auto& own : pod_.info.addresses) {
    if (record_.dst.ip == own) return nodemesh::fail(Reason::UNPUBLISHED, "the connection was not captured");
  }
  own_source();
  if (!decided) {
    auto destination = identify_destination(*worker_.snapshot, record_.dst);
    if (!destination) return std::unexpected(destination.error());
    record_.service = worker_.labels.service(destination->service);
    auto decision = decide_outbound(*worker_.snapshot, *destination, record_.src.ip, worker_.balancer);
    if (!decision) return std::unexpected(decision.error());
    decided = std::move(*decision);
  }
  record_.service = worker_.labels.service(decided->service);
  record_.destination = worker_.labels.workload(decided->workload);
  // Of an unknown server neither are the labels; it is judged when it is known, or before it is dialled.
  return decided->transport == Transport::unknown ? Result<>() : permit_egress(*pod_.workload, *decided);
}

Result<> OutboundSession::permitted() const {
  if (pod_.workload == nullptr) return {};
  OutboundDecision now{.transport = transport_, .target = target_, .workload = server_};
  if (auto ok = permit_egress(*pod_.workload, now); !ok) return ok;
  if (transport_ != Transport::same_node) return {};
  return permit_ingress(*server_, pod_.workload.get(), record_.src.ip, target_.port);
}

// An application may bind any loopback address before it connects. Policies and the server must see the pod's
// own.
void OutboundSession::own_source() {
  const auto& own = pod_.info.addresses;
  if (own.empty() || std::ranges::find(own, record_.src.ip) != own.end()) return;
  auto same_family = [&](const Addr& address) { return address.is_v4() == record_.dst.ip.is_v4(); };
  auto found = std::ranges::find_if(own, same_family);
  record_.src.ip = found != own.end() ? *found : own.front();
}

// All streams of one tunnel live on one worker: the connection moves there before its first byte is read.
bool OutboundSession::hand_over(const OutboundDecision& decided) {
  size_t workers = worker_.control.worker_count();
  if (workers == 1 || decided.transport != Transport::hbone) return false;
  size_t owner = owner_of(tunnel_key(pod_.info.cookie, decided.target, *decided.workload), workers);
  if (owner == worker_.options.number) return false;
  Worker& other = worker_.control.worker(owner);
  OutboundDecision moved = decided;
  moved.endpoint = nullptr;  // belongs to this worker's snapshot
  moved.port = nullptr;
  other.post([&other, accepted = Accepted{std::move(client_), pod_.info.cookie, record_.src, record_.dst},
              moved = std::move(moved)]() mutable {
    PodState* pod = other.find_pod(accepted.pod_cookie);
    if (pod == nullptr) return io::close_with_reset(accepted.fd);
    auto* session = new OutboundSession(other, *pod, std::move(accepted));
    session->run(std::move(moved));
  });
  leave();
  return true;
}

void OutboundSession::connect(const OutboundDecision& decided) {
  target_ = decided.target;
  transport_ = decided.transport;
  server_ = decided.workload;
  if (decided.endpoint != nullptr)
    hold_ = worker_.balancer.hold(*decided.service, *decided.port, *decided.endpoint);
  switch (transport_) {
    case Transport::same_node:
      return connect_same_node();
    case Transport::hbone:
      return connect_hbone();
    case Transport::passthrough:
      return connect_passthrough();
    case Transport::unknown:
      return connect_unknown();
  }
}

void OutboundSession::connect_unknown() {
  if (!give_up_at_) give_up_at_ = worker_.reactor.now() + kKnowTimeout;
  auto left = std::chrono::duration_cast<milliseconds>(*give_up_at_ - worker_.reactor.now());
  timer_.arm(worker_.reactor, std::max(left, milliseconds(0)));
  if (server_ != nullptr && !server_->ns.empty() && permitted()) connect_hbone();
}

// The newest snapshot may know more: of the server that was chosen, or of another that would do.
void OutboundSession::ask_again() {
  auto decided = decide_again(target_);
  if (decided && decided->transport == Transport::unknown) {
    auto other = decide_again(record_.dst);
    if (!other || other->transport != Transport::unknown) decided = std::move(other);
  }
  if (!decided) return fail(decided.error());
  bool somebody = decided->workload != nullptr && (server_ == nullptr || server_->ns.empty());
  if (decided->transport == Transport::unknown && !somebody) return;
  stop_waiting();
  stream_count_ = {};
  relay_.emplace<std::monostate>();
  run(std::move(*decided));
}

Result<OutboundDecision> OutboundSession::decide_again(const SockAddr& dialled) {
  auto destination = identify_destination(*worker_.snapshot, dialled);
  if (!destination) return std::unexpected(destination.error());
  return decide_outbound(*worker_.snapshot, *destination, record_.src.ip, worker_.balancer);
}

void OutboundSession::give_up_asking() {
  if (worker_.snapshot->mesh().peers.unknown == model::UnknownPeer::hold) {
    return fail({Reason::PEER_UNKNOWN, "it is not known whether " + target_.to_string() + " is in the mesh" +
                                           (last_try_.empty() ? "" : "; HBONE to it: " + last_try_)});
  }
  stop_waiting();
  stream_count_ = {};
  relay_.emplace<std::monostate>();
  transport_ = Transport::passthrough;
  connect_passthrough();
}

// A server of whom nothing is known and who has not proven to be one of the mesh: that proves nothing either.
bool OutboundSession::unproven(const Error& why) {
  if (transport_ != Transport::unknown || why.reason == Reason::TUNNEL_REFUSED) return false;
  last_try_ = why.message;
  return true;
}

void OutboundSession::on_no_tunnel(const Error& error) {
  waiting_tunnel_ = false;
  if (!unproven(error)) fail(error);
}

model::PeerFacts OutboundSession::facts() const {
  return {.identity = model::PeerIdentity::parse(*record_.source_identity),
          .source_ip = record_.src.ip,
          .destination_ip = target_.ip,
          .destination_port = target_.port,
          .mtls = false,
          .same_node = true};
}

void OutboundSession::connect_same_node() {
  record_.path = telemetry::Path::same_node;
  record_.destination_identity = identity_of(server_);
  PodState* server = worker_.find_pod_by_uid(server_->uid);
  if (server == nullptr) return fail({Reason::POD_GONE, "the server pod is not on this node any more"});
  server_cookie_ = server->info.cookie;
  if (auto allowed = note(admit(*server_, facts())); !allowed) return fail(allowed.error());
  if (auto allowed = permitted(); !allowed) return fail(allowed.error());
  if (is_own_listener(*server, target_))
    return fail({Reason::LOOP, "the destination is a listener of the mesh"});
  timer_.arm(worker_.reactor, kConnectTimeout);
  relay_.emplace<TcpRelay>(worker_.reactor, worker_.buffers, record_, static_cast<RelayOwner&>(*this),
                           &pod_.held_bytes);
  take_application_socket(*server);
}

void OutboundSession::take_application_socket(PodState& server) {
  waiting_socket_ = true;
  Fd socket = server.stock.take(warden::SocketKind::in, worker_.reactor.now(), this);
  if (socket) on_socket(std::move(socket));
}

void OutboundSession::connect_passthrough() {
  record_.path = telemetry::Path::passthrough;
  timer_.arm(worker_.reactor, kConnectTimeout);
  relay_.emplace<TcpRelay>(worker_.reactor, worker_.buffers, record_, static_cast<RelayOwner&>(*this),
                           &pod_.held_bytes);
  waiting_socket_ = true;
  Fd socket = pod_.stock.take(warden::SocketKind::out, worker_.reactor.now(), this);
  if (socket) on_socket(std::move(socket));
}

void OutboundSession::on_socket(Fd socket) {
  waiting_socket_ = false;
  auto& relay = std::get<TcpRelay>(relay_);
  int error;
  if (transport_ == Transport::same_node) {
    PodState* server = worker_.find_pod(server_cookie_);
    if (server == nullptr) return fail({Reason::POD_GONE, "the server pod is gone"});
    error = connect_application(relay.server, std::move(socket), target_, record_.src.ip, *server,
                                worker_.random, port_clashes_);
    if (error == EADDRNOTAVAIL && port_clashes_++ < kMostClashes) return take_application_socket(*server);
  } else {
    error = relay.server.connect(std::move(socket), target_, pod_.family);
  }
  if (error != EINPROGRESS) on_relay_connected(error);
}

void OutboundSession::on_relay_connected(int error) {
  timer_.cancel();
  if (error != 0)
    return fail({io::connect_reason(error), target_.to_string() + ": " + strerrordesc_np(error)});
  auto& relay = std::get<TcpRelay>(relay_);
  if (auto adopted = relay.client.adopt(std::move(client_)); !adopted) return fail(adopted.error());
  record_.established();
  relay.start();
}

void OutboundSession::connect_hbone() {
  record_.path = telemetry::Path::hbone;
  record_.hbone = {target_.ip, NM_HBONE_PORT};
  if (pod_.credential == nullptr)
    return fail({Reason::NO_IDENTITY, "no certificate for " + pod_.workload->identity});
  if (!timer_.armed()) timer_.arm(worker_.reactor, kConnectTimeout + seconds(10));
  waiting_tunnel_ = true;
  auto* connection =
      worker_.pool->acquire(pod_.pool_source(), tunnel_key(pod_.info.cookie, target_, *server_), *this);
  if (connection != nullptr) on_tunnel(*connection);
}

void OutboundSession::on_tunnel(http::HboneConnection& connection) {
  waiting_tunnel_ = false;
  if (!std::holds_alternative<TunnelRelay>(relay_)) {
    auto& relay = relay_.emplace<TunnelRelay>(TunnelRelay::Role::client, worker_.reactor, record_,
                                              static_cast<RelayOwner&>(*this), &pod_.held_bytes);
    // As long as nothing is known the connection may yet have to go another way.
    if (transport_ != Transport::unknown) {
      if (auto adopted = relay.tcp.adopt(std::move(client_)); !adopted) return fail(adopted.error());
    }
  }
  auto& relay = std::get<TunnelRelay>(relay_);
  relay.attach(connection);
  if (auto opened = open_tunnel_stream(connection, relay, target_, record_, pod_, worker_.random); !opened) {
    return fail(opened.error());
  }
  stream_count_ = telemetry::Counted(worker_.recorder.metrics.tunnel_streams_open);
  bool ours = connection.ready() && connection.peer()->alpn == tls::Alpn::nm1;
  if (ours && relay.tcp.is_open()) relay.allow_early_data();
}

void OutboundSession::on_tunnel_accepted(const http::HeaderBlock&) {
  timer_.cancel();
  auto& relay = std::get<TunnelRelay>(relay_);
  if (std::exchange(transport_, Transport::hbone) == Transport::unknown) {
    if (auto adopted = relay.tcp.adopt(std::move(client_)); !adopted) return fail(adopted.error());
  }
  const auto& connection = *relay.connection();
  fill_tls(connection);
  idle_limit_ = worker_.options.idle.of_stream(connection.peer()->alpn);
  record_.established();
}

void OutboundSession::fill_tls(const http::HboneConnection& connection) {
  record_.tls_version = connection.tls_version();
  record_.tls_cipher = connection.tls_cipher();
  const auto& identity = connection.peer()->identity;
  record_.destination_identity = {identity, &identity->uri};
}

void OutboundSession::on_tunnel_refused(const Error& error, bool processed) {
  stream_count_ = {};
  if (unproven(error)) return;
  // Nobody looked at the request (GOAWAY, REFUSED_STREAM): once more on another connection is safe.
  bool untouched = record_.from_client() == 0 && error.reason != Reason::TUNNEL_REFUSED;
  if (!processed && untouched && !std::exchange(retried_, true) && error.reason == Reason::STREAM_RESET) {
    return connect_hbone();
  }
  fail(error);
}

void OutboundSession::abort(const Error& error) {
  fail(error);
}

Monotonic::time_point OutboundSession::active_at() const {
  if (const auto* relay = std::get_if<TcpRelay>(&relay_)) return relay->active_at();
  if (const auto* relay = std::get_if<TunnelRelay>(&relay_)) return relay->tcp.active_at();
  return begun_;
}

size_t OutboundSession::held() const {
  if (const auto* relay = std::get_if<TcpRelay>(&relay_)) return relay->held();
  if (const auto* relay = std::get_if<TunnelRelay>(&relay_)) return relay->tcp.held();
  return 0;
}

void OutboundSession::on_relay_done(const Error& error) {
  stop_waiting();
  end(error);
}

void OutboundSession::fail(const Error& error) {
  stop_waiting();
  if (client_) io::close_with_reset(client_);
  if (auto* relay = std::get_if<TcpRelay>(&relay_)) relay->abort();
  if (auto* relay = std::get_if<TunnelRelay>(&relay_)) relay->abort(http::H2Error::cancel);
  end(error);
}

void OutboundSession::redecide() {
  if (transport_ == Transport::unknown) return ask_again();
  if (server_ == nullptr) return;
  if (transport_ == Transport::same_node) {
    const auto& server = worker_.snapshot->find_workload_by_uid(server_->uid);
    if (server == nullptr) return;  // the warden says when it is gone
    server_ = server;
    auto admission = admit(*server, facts());
    if (!admission.allow) return enforce(admission);
  } else {  // what is known of it may have changed, or be known only now
    const auto& snapshot = *worker_.snapshot;
    const auto& server = snapshot.find_workload(target_.ip);
    bool same = server != nullptr && (server_->mesh == model::Mesh::unknown || server->uid == server_->uid);
    if (same) server_ = server;
  }
  if (auto allowed = permitted(); !allowed)
    fail({Reason::POLICY_REVOKED, "now denied: " + allowed.error().message});
}

}  // namespace nodemesh::proxy

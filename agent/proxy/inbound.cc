#include "proxy/inbound.h"

#include <array>
#include <cerrno>
#include <cstring>

#include "base/log.h"
#include "io/socket.h"
#include "proxy/connect.h"
#include "proxy/identify.h"
#include "proxy/worker.h"

namespace nodemesh::proxy {
namespace {

constexpr auto kConnectTimeout = seconds(10);
// Handshakes a pod may have in flight on one worker; above that the oldest gives way, so that peers which
// never finish theirs do not keep others out.
constexpr size_t kMaxHandshakes = 512;

// As ztunnel answers (the status codes of HBONE).
const char* status_of(Reason reason) {
  switch (reason) {
    case Reason::BAD_METHOD:
    case Reason::BAD_AUTHORITY:
    case Reason::WRONG_DESTINATION:
    case Reason::LOOP:
      return "400";
    case Reason::POLICY_DENY:
    case Reason::POLICY_NO_ALLOW:
    case Reason::POLICY_UNSUPPORTED:
    case Reason::STRICT_PLAINTEXT:
      return "401";
    default:
      return "503";
  }
}

}  // namespace

void InboundTunnel::begin(Worker& worker, PodState& pod, Accepted accepted) {
  std::unique_ptr<InboundTunnel> tunnel(new InboundTunnel(worker, pod, std::move(accepted)));
  if (tunnel->connection_ == nullptr) return;
  pod.handshakes.push_back(tunnel.get());
  if (pod.handshakes.size() > kMaxHandshakes) {
    auto* oldest = pod.handshakes.front();
    pod.handshakes.pop_front();  // closing takes until the end of the turn, and the next burst needs another
    oldest->connection_->close({Reason::OVER_LIMIT, "too many handshakes in flight"});
  }
  auto* key = tunnel.get();
  pod.tunnels.emplace(key, std::move(tunnel));
}

InboundTunnel::InboundTunnel(Worker& worker, PodState& pod, Accepted accepted)
    : worker_(worker),
      pod_(pod),
      peer_(accepted.peer),
      local_(accepted.local),
      count_(worker.recorder.metrics.tunnels_open) {
  auto ssl = worker_.server_tls->accept(pod_.credential);
  if (!ssl) {
    record_refusal(local_, ssl.error());
    io::close_with_reset(accepted.fd);
    return;
  }
  connection_ = std::make_unique<http::HboneConnection>(
      http::H2Session::Role::server, worker_.reactor, worker_.buffers, std::move(accepted.fd),
      std::move(*ssl), static_cast<http::HboneOwner&>(*this), worker_.h2_limits, worker_.options.hbone_times);
  connection_->charge_to(pod_.held_bytes);
  if (auto started = connection_->start(); !started) {
    record_refusal(local_, started.error());
    connection_.reset();
  }
}

InboundTunnel::~InboundTunnel() = default;

void InboundTunnel::on_hbone_handshake(http::HboneConnection& connection, const Error& error,
                                       Monotonic::duration took) {
  std::erase(pod_.handshakes, this);
  bool resumed = connection.peer() != nullptr && connection.peer()->resumed;
  worker_.recorder.metrics.tls_handshake(telemetry::TlsSide::server, error.reason, resumed, took);
  if (error.reason != Reason::NONE) record_refusal(local_, error);
}

void InboundTunnel::on_hbone_closed(http::HboneConnection&, const Error& error) {
  count_ = {};
  std::erase(pod_.handshakes, this);
  bool hostile = error.reason == Reason::H2_FLOOD || error.reason == Reason::H2_PROTOCOL ||
                 error.reason == Reason::HEADERS_TOO_LARGE || error.reason == Reason::OVER_LIMIT;
  if (hostile) record_refusal(local_, error);
  auto node = pod_.tunnels.extract(this);
  // This object is on the stack of its connection; it goes when this turn's handlers have returned.
  worker_.reactor.post([gone = std::move(node)] {});
}

// A connection that never became a session still leaves a line and a count.
void InboundTunnel::record_refusal(const SockAddr& destination, const Error& error) {
  telemetry::Record record(worker_.recorder, telemetry::Direction::inbound);
  record.path = telemetry::Path::hbone;
  record.src = peer_;
  record.dst = destination;
  record.hbone = local_;
  record.destination = worker_.labels.workload(pod_.workload);
  if (connection_ != nullptr && connection_->peer() != nullptr) {
    const auto& identity = connection_->peer()->identity;
    record.source_identity = {identity, &identity->uri};
    record.tls_version = connection_->tls_version();
    record.tls_cipher = connection_->tls_cipher();
  }
  record.fail(error);
  record.complete();
}

void InboundTunnel::refuse(int32_t id, const SockAddr& destination, const Error& error) {
  connection_->session().refuse(id, status_of(error.reason));
  connection_->schedule_flush();
  record_refusal(destination, error);
}

void InboundTunnel::on_hbone_request(http::HboneConnection& connection, int32_t id,
                                     const http::HeaderBlock& headers, bool) {
  if (headers.method != "CONNECT" || !headers.protocol.empty()) {
    return refuse(id, local_, {Reason::BAD_METHOD, "method " + headers.method});
  }
  auto destination = parse_connect_authority(headers.authority, local_.ip);
  if (destination && is_own_listener(pod_, *destination)) {
    destination = fail(Reason::LOOP, "authority names a listener of the mesh");
  }
  if (!destination) return refuse(id, local_, destination.error());
  TunnelSession::begin(worker_, pod_, connection, id, peer_, *destination);
}

InboundSession::InboundSession(Worker& worker, PodState& pod, const SockAddr& peer,
                               const SockAddr& destination)
    : Session(worker, pod, telemetry::Direction::inbound) {
  record_.src = peer;
  record_.dst = destination;
}

model::PeerFacts InboundSession::facts() const {
  model::PeerFacts facts{.source_ip = record_.src.ip,
                         .destination_ip = record_.dst.ip,
                         .destination_port = record_.dst.port,
                         .mtls = record_.source_identity != nullptr};
  if (record_.source_identity != nullptr)
    facts.identity = model::PeerIdentity::parse(*record_.source_identity);
  return facts;
}

Result<> InboundSession::authorise() {
  const auto& snapshot = *worker_.snapshot;
  record_.destination = worker_.labels.workload(pod_.workload);
  record_.service = worker_.labels.service(service_of_endpoint(snapshot, record_.dst));
  auto facts = this->facts();
  // The address is only a hint; a proven identity that contradicts it counts.
  const auto& source = snapshot.find_workload(record_.src.ip);
  bool agrees = source != nullptr && (!facts.identity || facts.identity->uri == source->identity);
  record_.source = agrees ? worker_.labels.workload(source)
                          : (facts.identity ? worker_.labels.stranger(*facts.identity) : nullptr);
  if (pod_.workload == nullptr)
    return nodemesh::fail(Reason::POD_UNKNOWN, "no Pod object explains the server");
  if (auto allowed = note(admit(*pod_.workload, facts)); !allowed) return allowed;
  return permitted();
}

Result<> InboundSession::permitted() const {
  auto facts = this->facts();
  if (!facts.mtls) return {};
  // The labels of the pod at the address count only if that pod is who the certificate says.
  const auto& client = worker_.snapshot->find_workload(facts.source_ip);
  bool proven = client != nullptr && facts.identity && facts.identity->uri == client->identity;
  return permit_ingress(*pod_.workload, proven ? client.get() : nullptr, facts.source_ip,
                        facts.destination_port);
}

void InboundSession::redecide() {
  if (pod_.workload == nullptr) return;
  auto admission = admit(*pod_.workload, facts());
  if (!admission.allow) return enforce(admission);
  if (auto allowed = permitted(); !allowed)
    abort({Reason::POLICY_REVOKED, "now denied: " + allowed.error().message});
}

TunnelSession::TunnelSession(Worker& worker, PodState& pod, http::HboneConnection& connection,
                             const SockAddr& peer, const SockAddr& destination)
    : InboundSession(worker, pod, peer, destination),
      timer_([this] { refuse({Reason::CONNECT_TIMEOUT, "the application did not answer in time"}); }),
      relay_(TunnelRelay::Role::server, worker.reactor, record_, *this, &pod.held_bytes),
      stream_count_(worker.recorder.metrics.tunnel_streams_open) {
  const auto& identity = connection.peer()->identity;
  record_.path = telemetry::Path::hbone;
  record_.hbone = peer;
  record_.source_identity = {identity, &identity->uri};
  record_.destination_identity = identity_of(pod.workload);
  record_.tls_version = connection.tls_version();
  record_.tls_cipher = connection.tls_cipher();
  idle_limit_ = worker.options.idle.of_stream(connection.peer()->alpn);
  relay_.attach(connection);
}

void TunnelSession::begin(Worker& worker, PodState& pod, http::HboneConnection& connection, int32_t id,
                          const SockAddr& peer, const SockAddr& destination) {
  auto* session = new TunnelSession(worker, pod, connection, peer, destination);
  connection.session().accept(session->relay_, id);
  if (auto allowed = session->authorise(); !allowed) return session->refuse(allowed.error());
  session->connect();
}

void TunnelSession::connect() {
  waiting_ = true;
  Fd socket = pod_.stock.take(warden::SocketKind::in, worker_.reactor.now(), this);
  if (socket) return on_socket(std::move(socket));
  timer_.arm(worker_.reactor, kConnectTimeout);
}

void TunnelSession::stop_waiting() {
  timer_.cancel();
  if (std::exchange(waiting_, false)) pod_.stock.cancel(*this);
}

void TunnelSession::on_socket(Fd socket) {
  waiting_ = false;
  int error = connect_application(relay_.tcp, std::move(socket), record_.dst, record_.src.ip, pod_,
                                  worker_.random, port_clashes_);
  if (error == EADDRNOTAVAIL && port_clashes_++ < kMostClashes) return connect();
  if (error != EINPROGRESS) return on_relay_connected(error);
  timer_.arm(worker_.reactor, kConnectTimeout);
}

void TunnelSession::on_relay_connected(int error) {
  timer_.cancel();
  if (error != 0)
    return refuse({io::connect_reason(error), record_.dst.to_string() + ": " + strerrordesc_np(error)});
  std::array<http::HeaderField, 2> headers = {{{":status", "200"}, {"baggage", pod_.baggage}}};
  auto& connection = *relay_.connection();
  connection.session().respond(relay_, headers);
  connection.schedule_flush();
  answered_ = true;
  record_.established();
  relay_.start();
}

void TunnelSession::refuse(const Error& error) {
  auto& connection = *relay_.connection();
  if (!answered_ && relay_.stream_id() > 0) {
    connection.session().refuse(relay_, status_of(error.reason));
    connection.schedule_flush();
  }
  abort(error);
}

void TunnelSession::on_relay_done(const Error& error) {
  stop_waiting();
  end(error);
}

void TunnelSession::abort(const Error& error) {
  stop_waiting();
  relay_.abort(http::H2Error::connect_error);
  end(error);
}

void PlaintextSession::begin(Worker& worker, PodState& pod, Accepted accepted) {
  (new PlaintextSession(worker, pod, std::move(accepted)))->run();
}

PlaintextSession::PlaintextSession(Worker& worker, PodState& pod, Accepted accepted)
    : InboundSession(worker, pod, accepted.peer, accepted.local),
      client_(std::move(accepted.fd)),
      timer_([this] { abort({Reason::CONNECT_TIMEOUT, "the application did not answer in time"}); }),
      relay_(worker.reactor, worker.buffers, record_, *this, &pod.held_bytes) {
  record_.path = telemetry::Path::plaintext;
}

void PlaintextSession::stop_waiting() {
  timer_.cancel();
  if (std::exchange(waiting_, false)) pod_.stock.cancel(*this);
}

void PlaintextSession::run() {
  if (auto allowed = authorise(); !allowed) return abort(allowed.error());
  if (is_own_listener(pod_, record_.dst))
    return abort({Reason::LOOP, "the destination is a listener of the mesh"});
  connect();
}

void PlaintextSession::connect() {
  waiting_ = true;
  Fd socket = pod_.stock.take(warden::SocketKind::in, worker_.reactor.now(), this);
  if (socket) return on_socket(std::move(socket));
  timer_.arm(worker_.reactor, kConnectTimeout);
}

void PlaintextSession::on_socket(Fd socket) {
  waiting_ = false;
  int error = connect_application(relay_.server, std::move(socket), record_.dst, record_.src.ip, pod_,
                                  worker_.random, port_clashes_);
  if (error == EADDRNOTAVAIL && port_clashes_++ < kMostClashes) return connect();
  if (error != EINPROGRESS) return on_relay_connected(error);
  timer_.arm(worker_.reactor, kConnectTimeout);
}

void PlaintextSession::on_relay_connected(int error) {
  timer_.cancel();
  if (error != 0)
    return abort({io::connect_reason(error), record_.dst.to_string() + ": " + strerrordesc_np(error)});
  if (auto adopted = relay_.client.adopt(std::move(client_)); !adopted) return abort(adopted.error());
  record_.established();
  relay_.start();
}

void PlaintextSession::abort(const Error& error) {
  stop_waiting();
  if (client_) io::close_with_reset(client_);
  relay_.abort();
  end(error);
}

}  // namespace nodemesh::proxy

#include "http/hbone.h"

#include <openssl/ssl.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>

#include "io/socket.h"

namespace nodemesh::http {
namespace {

// What one connection may send or receive in a turn before the others have theirs.
constexpr size_t kTurnBudget = 2 << 20;
// What a connection that we ended for cause may go on sending until it is reset.
constexpr auto kLinger = seconds(1);
constexpr size_t kMaxDiscarded = 1 << 20;

}  // namespace

HboneConnection::HboneConnection(H2Session::Role role, io::Reactor& reactor, io::Buffers& buffers, Fd fd,
                                 tls::SslPtr ssl, HboneOwner& owner, const H2Limits& limits,
                                 const HboneTimes& times)
    : role_(role),
      state_(role == H2Session::Role::client ? State::connecting : State::handshaking),
      reactor_(reactor),
      buffers_(buffers),
      owner_(owner),
      times_(times),
      tls_(std::move(ssl), std::move(fd), buffers),
      limits_(limits),
      started_(reactor.now()),
      busy_at_(started_),
      timer_([this] { on_timer(); }),
      flush_([this] { flush(); }),
      end_([this] { finish(); }) {
  if (role == H2Session::Role::client) session_.emplace(role_, static_cast<H2SessionOwner&>(*this));
}

HboneConnection::~HboneConnection() {
  if (state_ != State::closed) {
    reactor_.remove(tls_.fd(), *this);
    if (session_) session_->close_all(true);
  }
}

Result<> HboneConnection::start() {
  auto added = reactor_.add(tls_.fd(), *this);
  if (!added) {
    state_ = State::closed;
    return added;
  }
  timer_.arm(reactor_, state_ == State::connecting ? times_.connect : times_.handshake);
  return {};
}

const char* HboneConnection::tls_version() const {
  return SSL_get_version(tls_.ssl());
}
const char* HboneConnection::tls_cipher() const {
  return SSL_get_cipher_name(tls_.ssl());
}

void HboneConnection::on_events(uint32_t events) {
  if (state_ == State::lingering) return discard();
  if (closing_) return;
  constexpr uint32_t kEnded = EPOLLRDHUP | EPOLLHUP | EPOLLERR;
  if (events & (EPOLLIN | kEnded)) tls_.mark_readable((events & kEnded) != 0);
  if (state_ == State::connecting && !finish_connect(events)) return;
  // A server has nothing to do, and no buffer to spend, before the peer's first byte.
  if (state_ == State::handshaking && role_ == H2Session::Role::server && !(events & ~uint32_t{EPOLLOUT}))
    return;
  if (state_ == State::handshaking) return advance_handshake();
  if ((events & EPOLLOUT) && tls_.blocked()) {
    if (!tls_.flush()) return close({Reason::TUNNEL_LOST, "the peer closed the connection"});
    if (!tls_.blocked()) schedule_flush();
  }
  if ((events & ~uint32_t{EPOLLOUT}) && !again_) receive();
}

bool HboneConnection::finish_connect(uint32_t events) {
  if (!(events & (EPOLLOUT | EPOLLERR | EPOLLHUP))) return false;
  if (int error = io::take_error(tls_.fd()); error != 0) {
    close({io::connect_reason(error), "HBONE connect: " + std::string(strerrordesc_np(error))});
    return false;
  }
  state_ = State::handshaking;
  timer_.arm(reactor_, times_.handshake);
  return true;
}

void HboneConnection::advance_handshake() {
  auto progress = tls_.handshake();
  Error failure{Reason::NONE, {}};
  if (progress == tls::Stream::State::ok) {
    auto peer = tls::finish_handshake(tls_.ssl());
    if (peer) {
      peer_ = *peer;
    } else {
      failure = peer.error();
    }
  } else if (progress != tls::Stream::State::want) {
    failure = tls::handshake_error(tls_.ssl());
    if (failure.reason == Reason::NONE) failure.reason = Reason::TLS_FAILED;
  }
  if (!tls_.flush() && failure.reason == Reason::NONE)
    failure = {Reason::TLS_FAILED, "the peer closed the connection"};
  if (failure.reason == Reason::NONE && peer_ == nullptr) return;
  owner_.on_hbone_handshake(*this, failure, Monotonic::now() - started_);
  if (failure.reason != Reason::NONE) {
    return close(std::move(failure));
  }
  if (!session_) session_.emplace(role_, static_cast<H2SessionOwner&>(*this));
  session_->announce(peer_->alpn == tls::Alpn::nm1 ? limits_ : limits_.for_stranger());
  state_ = State::open;
  ping_at_ = reactor_.now();
  timer_.arm(reactor_, times_.ping_interval);
  schedule_flush();
  receive();
}

void HboneConnection::receive() {
  for (size_t taken = 0; state_ == State::open;) {
    auto [bytes, state, drained] = tls_.read();
    taken += bytes.size();
    if (!bytes.empty() && !session_->feed(bytes)) {
      close(session_->error());
      return flush();  // the GOAWAY that says why
    }
    if (state == tls::Stream::State::failed) return close({Reason::TUNNEL_LOST, "the TLS connection broke"});
    if (state == tls::Stream::State::closed)
      return close({Reason::TUNNEL_LOST, "the peer closed the connection"});
    if (drained) break;
    if (taken >= kTurnBudget) {
      // Events that come while this is posted leave it to this, or each would begin a share of its own.
      again_ = true;
      reactor_.post([this, alive = std::weak_ptr<int>(alive_)] {
        if (alive.expired()) return;
        again_ = false;
        if (!closing_) receive();
      });
      break;
    }
  }
  if (session_->wants_write()) schedule_flush();
}

void HboneConnection::flush() {
  if (state_ != State::open) return;
  for (size_t sent = 0; !tls_.blocked();) {
    size_t count = session_->drain({buffers_.gather.get(), io::Buffers::kGather});
    if (count == 0) break;
    if (!tls_.seal({buffers_.gather.get(), count}) || !tls_.flush()) {
      return close({Reason::TUNNEL_LOST, "the peer closed the connection"});
    }
    sent += count;
    if (sent >= kTurnBudget) {
      schedule_flush();
      break;
    }
  }
  if (!tls_.flush()) return close({Reason::TUNNEL_LOST, "the peer closed the connection"});
  if (session_->open_streams() > 0) busy_at_ = reactor_.now();
  bool drained =
      draining_ && (refusing_ || role_ == H2Session::Role::client) && session_->open_streams() == 0;
  if ((drained || session_->finished()) && !tls_.blocked()) close(session_->error());
}

void HboneConnection::on_ping_ack(H2Ping kind) {
  if (kind == H2Ping::alive) {
    ping_sent_ = false;
    return;
  }
  // The peer has seen the announcement of drain(): every stream it opened before that has arrived.
  if (draining_) refuse_new_streams();
}

void HboneConnection::refuse_new_streams() {
  if (role_ != H2Session::Role::server || std::exchange(refusing_, true)) return;
  session_->refuse_new_streams();
  schedule_flush();
}

void HboneConnection::on_request(int32_t id, const HeaderBlock& headers, bool end) {
  owner_.on_hbone_request(*this, id, headers, end);
}

void HboneConnection::on_request_refused(const Error& error) {
  owner_.on_hbone_request_refused(*this, error);
}

void HboneConnection::on_goaway() {
  if (std::exchange(draining_, true)) return;
  owner_.on_hbone_draining(*this);
  schedule_flush();
}

void HboneConnection::drain() {
  if (std::exchange(draining_, true) || closing_) return;
  owner_.on_hbone_draining(*this);
  if (state_ != State::open) return close({Reason::NONE, {}});
  if (role_ == H2Session::Role::server) {
    drain_at_ = reactor_.now();
    session_->shutdown_notice();
  } else {
    session_->refuse_new_streams();
  }
  schedule_flush();
}

void HboneConnection::verify_again(tls::Verifier& verifier, tls::PeerRole peer_role) {
  if (state_ != State::open) return;
  auto verified = verifier.verify_again(*peer_->identity, SSL_get0_peer_certificate(tls_.ssl()),
                                        SSL_get_peer_cert_chain(tls_.ssl()), peer_role);
  if (!verified) close(verified.error());
}

void HboneConnection::close(Error error) {
  if (std::exchange(closing_, true)) return;
  error_ = std::move(error);
  end_.schedule(reactor_);
}

void HboneConnection::finish() {
  bool was_open = state_ == State::open;
  if (was_open) {
    tls_.close_notify();
    tls_.flush();
  }
  if (session_) session_->close_all(was_open);
  // The peer may still be sending: closing now would reset the connection, and it would lose our last bytes.
  if (was_open && (error_.reason == Reason::NONE || session_->error().reason != Reason::NONE)) {
    state_ = State::lingering;
    ::shutdown(tls_.fd(), SHUT_WR);
    tls_.drop_unsent();
    timer_.arm(reactor_, kLinger);
    return discard();
  }
  leave();
}

// Reads and forgets until the peer has closed, the time is over, or it has sent enough.
void HboneConnection::discard() {
  ssize_t count;
  do {
    count = ::recv(tls_.fd(), buffers_.cipher.get(), io::Buffers::kCipher, 0);
    if (count > 0) discarded_ += static_cast<size_t>(count);
  } while (count > 0 && discarded_ < kMaxDiscarded);
  if (count < 0 && errno == EAGAIN) return;
  reactor_.post([this, alive = std::weak_ptr<int>(alive_)] {
    if (!alive.expired() && state_ == State::lingering) leave();
  });
}

void HboneConnection::leave() {
  state_ = State::closed;
  tls_.drop_unsent();
  timer_.cancel();
  reactor_.remove(tls_.fd(), *this);
  owner_.on_hbone_closed(*this, error_);
}

void HboneConnection::on_timer() {
  if (state_ == State::lingering) return leave();
  if (state_ == State::connecting) return close({Reason::CONNECT_TIMEOUT, "HBONE connect"});
  if (state_ == State::handshaking) {
    Error timeout{Reason::HANDSHAKE_TIMEOUT, "the TLS handshake did not finish in time"};
    owner_.on_hbone_handshake(*this, timeout, Monotonic::now() - started_);
    return close(std::move(timeout));
  }
  tick_open();
}

void HboneConnection::tick_open() {
  auto now = reactor_.now();
  timer_.arm(reactor_, times_.ping_interval);
  if (session_->open_streams() > 0) busy_at_ = now;
  if (role_ == H2Session::Role::client && now - busy_at_ >= times_.idle) return drain();
  if (ping_sent_ && now - ping_at_ >= times_.ping_timeout) {
    return close({Reason::PING_TIMEOUT, "no answer to PING"});
  }
  // Who answers every PING but that of the drain would open streams for ever.
  if (drain_at_ != Monotonic::time_point{} && now - drain_at_ >= times_.ping_timeout) refuse_new_streams();
  // A connection that lasts is worth resuming; sealing a ticket costs a sixth of a handshake.
  if (role_ == H2Session::Role::server && peer_->alpn == tls::Alpn::nm1 &&
      !std::exchange(ticket_sent_, true)) {
    tls::send_ticket(tls_.ssl());
    if (!tls_.flush()) return close({Reason::TUNNEL_LOST, "the peer closed the connection"});
  }
  if (!ping_sent_) {
    ping_sent_ = true;
    ping_at_ = now;
    session_->ping(H2Ping::alive);
    schedule_flush();
  }
}

}  // namespace nodemesh::http

#include "controller/tls_front.h"

#include <openssl/err.h>
#include <sys/socket.h>

#include <array>
#include <cerrno>
#include <cstring>

#include "base/log.h"
#include "io/socket.h"
#include "io/tcp_end.h"
#include "tls/stream.h"

namespace nodemesh::controller {
namespace {

constexpr auto kDescriptorPause = milliseconds(100);  // when there is none left for another connection

int select_h2(SSL*, const unsigned char** out, unsigned char* size, const unsigned char* in,
              unsigned int in_size, void*) {
  static constexpr unsigned char kH2[] = {2, 'h', '2'};
  unsigned char* chosen = nullptr;
  if (SSL_select_next_proto(&chosen, size, kH2, sizeof kH2, in, in_size) != OPENSSL_NPN_NEGOTIATED)
    return SSL_TLSEXT_ERR_ALERT_FATAL;
  *out = chosen;
  return SSL_TLSEXT_ERR_OK;
}

}  // namespace

Result<tls::SslCtxPtr> make_server_context(EVP_PKEY* key, const std::vector<std::string>& chain_pem) {
  tls::SslCtxPtr ctx(SSL_CTX_new(TLS_server_method()));
  if (!ctx) return fail("TLS: cannot make a context: " + tls::take_openssl_error());
  std::string pem;
  for (const std::string& one : chain_pem) pem += one;
  auto chain = tls::parse_certificates(pem);
  if (!chain) return std::unexpected(chain.error());
  if (chain->empty()) return fail("TLS: no server certificate");
  bool ok = SSL_CTX_set_min_proto_version(ctx.get(), TLS1_3_VERSION) == 1 &&
            SSL_CTX_use_certificate(ctx.get(), chain->front().get()) == 1 &&
            SSL_CTX_use_PrivateKey(ctx.get(), key) == 1;
  for (size_t i = 1; ok && i < chain->size(); ++i)
    ok = SSL_CTX_add1_chain_cert(ctx.get(), (*chain)[i].get()) == 1;
  if (!ok) return fail("TLS: the server certificate is refused: " + tls::take_openssl_error());
  SSL_CTX_set_alpn_select_cb(ctx.get(), select_h2, nullptr);
  SSL_CTX_set_session_cache_mode(ctx.get(), SSL_SESS_CACHE_OFF);
  SSL_CTX_set_num_tickets(ctx.get(), 0);
  SSL_CTX_set_mode(ctx.get(), SSL_MODE_RELEASE_BUFFERS | SSL_MODE_ENABLE_PARTIAL_WRITE |
                                  SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER | SSL_MODE_NO_AUTO_CHAIN);
  return ctx;
}

// One connection: TLS towards the peer, plain towards the backend. Each side is read only while the other
// takes what it is given, so neither holds more than one read of the other.
class TlsFront::Connection final : private io::EventHandler, private io::TcpEndOwner {
 public:
  Connection(TlsFront& front, uint64_t number, const SockAddr& from, tls::SslPtr ssl, Fd fd)
      : id(number),
        peer(from),
        front_(front),
        tls_(std::move(ssl), std::move(fd), front.buffers_),
        plain_(front.reactor_, *this),
        deadline_([this] { give_up("the handshake took too long"); }) {}
  ~Connection() { front_.reactor_.remove(tls_.fd(), *this, true); }

  Result<> start() {
    deadline_.arm(front_.reactor_, front_.settings_.handshake);
    return front_.reactor_.add(tls_.fd(), *this);
  }

  const uint64_t id;
  const SockAddr peer;

 private:
  void on_events(uint32_t events) override {
    if (done_) return;
    if (events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR))
      tls_.mark_readable((events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) != 0);
    if (!open_ && !shake_hands()) return;
    if (tls_.blocked() && !tls_.flush()) return finish();
    pump_out();
    pump_in();
  }

  bool shake_hands() {
    auto state = tls_.handshake();
    bool flushed = tls_.flush();
    if (state == tls::Stream::State::want && flushed) return false;
    if (state != tls::Stream::State::ok || !flushed) {
      give_up(state == tls::Stream::State::failed ? tls_.last_error() : "the peer left");
      return false;
    }
    const unsigned char* protocol = nullptr;
    unsigned int size = 0;
    SSL_get0_alpn_selected(tls_.ssl(), &protocol, &size);
    if (size == 0) {
      give_up("the peer did not offer ALPN h2");
      return false;
    }
    deadline_.cancel();
    return connect_backend();
  }

  bool connect_backend() {
    int pair[2];
    if (::socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair) != 0) {
      give_up("no descriptor left");
      return false;
    }
    Fd ours(pair[0]), theirs(pair[1]);
    if (auto adopted = plain_.adopt(std::move(ours)); !adopted) {
      give_up(adopted.error().message);
      return false;
    }
    open_ = true;
    front_.accepted_(std::move(theirs), peer.ip.to_string());
    return true;
  }

  // Peer to backend.
  void pump_in() {
    while (!done_ && plain_.kept() == 0 && !ended_) {
      auto got = tls_.read();
      if (!got.bytes.empty()) {
        iovec piece{const_cast<uint8_t*>(got.bytes.data()), got.bytes.size()};
        plain_.write({&piece, 1}, piece.iov_len);
      }
      if (plain_.broken() || got.state == tls::Stream::State::failed) return finish();
      if (got.state == tls::Stream::State::closed) {
        ended_ = true;
        return plain_.end_write();
      }
      if (got.drained) return;
    }
  }

  // Backend to peer.
  void pump_out() {
    std::array<uint8_t, 16 * 1024> chunk;
    while (!done_ && !tls_.blocked() && plain_.is_open() && plain_.readable()) {
      auto got = plain_.read(chunk);
      if (got.bytes > 0 && (!tls_.seal({chunk.data(), got.bytes}) || !tls_.flush())) return finish();
      if (got.status == io::TcpEnd::Status::broken) return finish();
      if (got.status == io::TcpEnd::Status::end) {
        tls_.close_notify();
        tls_.flush();
        return finish();
      }
      if (got.status == io::TcpEnd::Status::empty) return;
    }
  }

  void on_readable(io::TcpEnd&) override { pump_out(); }
  void on_drained(io::TcpEnd&, size_t) override { pump_in(); }
  void on_connected(io::TcpEnd&, int) override {}
  void on_broken(io::TcpEnd&) override { finish(); }

  void give_up(const std::string& why) {
    ++front_.counters_.failed_handshakes;
    log::debug(log::Component::controller, "connection ended before it was one",
               {{"peer", peer.to_string()}, {"why", why}});
    finish();
  }

  void finish() {
    if (std::exchange(done_, true)) return;
    deadline_.cancel();
    front_.drop(*this);
  }

  TlsFront& front_;
  tls::Stream tls_;
  io::TcpEnd plain_;
  io::Timer deadline_;
  bool open_ = false, ended_ = false, done_ = false;
};

TlsFront::TlsFront(io::Reactor& reactor, Fd listener, Settings settings, Context context, Accepted accepted)
    : reactor_(reactor),
      listener_(std::move(listener)),
      settings_(settings),
      context_(std::move(context)),
      accepted_(std::move(accepted)) {}

Result<std::unique_ptr<TlsFront>> TlsFront::start(io::Reactor& reactor, Fd listener, Settings settings,
                                                  Context context, Accepted accepted) {
  std::unique_ptr<TlsFront> out(
      new TlsFront(reactor, std::move(listener), settings, std::move(context), std::move(accepted)));
  if (auto added = reactor.add(out->listener_.get(), *out); !added) return std::unexpected(added.error());
  return out;
}

TlsFront::~TlsFront() {
  reactor_.remove(listener_.get(), *this);
}

void TlsFront::accept_all() {
  while (true) {
    sockaddr_storage from{};
    socklen_t size = sizeof from;
    Fd peer(
        ::accept4(listener_.get(), reinterpret_cast<sockaddr*>(&from), &size, SOCK_NONBLOCK | SOCK_CLOEXEC));
    if (!peer && (errno == EINTR || errno == ECONNABORTED)) continue;
    // Edge-triggered: without descriptors no event would come for those who wait already.
    if (!peer && errno != EAGAIN) return accept_again_.arm(reactor_, kDescriptorPause);
    if (!peer) return;
    take(std::move(peer), SockAddr::from_native(from));
  }
}

void TlsFront::take(Fd peer, const SockAddr& from) {
  SSL_CTX* context = context_();
  auto found = of_address_.find(from.ip);
  bool full = connections_.size() >= settings_.max_connections ||
              (found != of_address_.end() && found->second >= settings_.max_of_address);
  tls::SslPtr ssl(context != nullptr && !full ? SSL_new(context) : nullptr);
  if (!ssl) {
    ++counters_.refused;
    return io::close_with_reset(peer);
  }
  SSL_set_accept_state(ssl.get());
  auto connection = std::make_unique<Connection>(*this, next_id_++, from, std::move(ssl), std::move(peer));
  Connection& raw = *connection;
  ++counters_.accepted;
  ++of_address_[from.ip];
  connections_.emplace(raw.id, std::move(connection));
  if (auto started = raw.start(); !started) drop(raw);
}

void TlsFront::drop(Connection& connection) {
  dropped_.push_back(connection.id);
  sweep_.schedule(reactor_);
}

void TlsFront::sweep() {
  for (uint64_t id : std::exchange(dropped_, {})) {
    auto found = connections_.find(id);
    if (found == connections_.end()) continue;
    auto count = of_address_.find(found->second->peer.ip);
    if (--count->second == 0) of_address_.erase(count);
    connections_.erase(found);
  }
}

}  // namespace nodemesh::controller

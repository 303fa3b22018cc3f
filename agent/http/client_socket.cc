#include "http/client_socket.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <cerrno>
#include <cstddef>
#include <cstring>

#include <fmt/format.h>

#include "io/socket.h"
#include "tls/outgoing.h"

namespace nodemesh::http {
namespace {

constexpr size_t kMaxRoots = 1 << 20;
constexpr std::string_view kH2 = "\x02h2";

Result<std::string> read_file(const std::string& path) {
  Fd file(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!file) return fail_errno("roots file " + path);
  std::string out(kMaxRoots + 1, '\0');
  size_t size = 0;
  while (size < out.size()) {
    ssize_t got = ::read(file.get(), out.data() + size, out.size() - size);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return fail_errno("roots file " + path);
    if (got == 0) break;
    size += static_cast<size_t>(got);
  }
  if (size > kMaxRoots)
    return fail("roots file " + path + " is longer than 1 MiB; name a file with the roots alone");
  out.resize(size);
  return out;
}

Result<tls::SslPtr> make_session(const ClientTls& settings) {
  auto pem = read_file(settings.roots_file);
  if (!pem) return std::unexpected(pem.error());
  return tls::outgoing_ssl({.server_name = settings.server_name,
                            .roots = *pem,
                            .roots_name = "roots file " + settings.roots_file,
                            .alpn = kH2});
}

std::string why_untrusted(SSL* ssl, const ClientTls& settings, const std::string& otherwise) {
  long code = SSL_get_verify_result(ssl);
  if (code == X509_V_OK) return otherwise;
  return fmt::format("the server's certificate is not good for {} by {}: {}", settings.server_name,
                     settings.roots_file, X509_verify_cert_error_string(code));
}

}  // namespace

std::string ClientTarget::name() const {
  if (!unix_path.empty()) return "unix:" + unix_path;
  return host.contains(':') ? fmt::format("[{}]:{}", host, port) : fmt::format("{}:{}", host, port);
}

ClientSocket::ClientSocket(io::Reactor& reactor, ClientTarget target, ClientSocketOwner& owner)
    : reactor_(reactor), target_(std::move(target)), owner_(owner) {}

ClientSocket::~ClientSocket() {
  close();
}

void ClientSocket::close() {
  ++dial_;
  drop_socket();
  state_ = State::idle;
}

void ClientSocket::drop_socket() {
  if (registered_) reactor_.remove(tls_ ? tls_->fd() : fd_.get(), *this, true);
  registered_ = false;
  tls_.reset();
  fd_.reset();
  unsent_.clear();
}

void ClientSocket::lose(std::string why) {
  close();
  reactor_.post([this, alive = std::weak_ptr<bool>(alive_), dial = dial_, why = std::move(why)]() mutable {
    if (!alive.expired() && dial == dial_) owner_.on_lost(std::move(why));
  });
}

void ClientSocket::dial() {
  ++dial_;
  state_ = State::connecting;
  if (!target_.unix_path.empty()) {
    sockaddr_storage native{};
    auto* address = reinterpret_cast<sockaddr_un*>(&native);
    address->sun_family = AF_UNIX;
    if (target_.unix_path.size() >= sizeof address->sun_path) return lose("the socket path is too long");
    std::memcpy(address->sun_path, target_.unix_path.data(), target_.unix_path.size());
    auto size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + target_.unix_path.size() + 1);
    if (auto connected = connect(native, size, AF_UNIX); !connected) lose(connected.error().message);
    return;
  }
  next_address_ = 0;
  if (auto literal = Addr::parse(target_.host)) {
    addresses_ = {{*literal, target_.port}};
    return connect_next();
  }
  resolve();
}

void ClientSocket::resolve() {
  state_ = State::resolving;
  if (looking_up_) return;  // for an earlier dial, of the same name
  if (!resolver_) resolver_ = std::make_unique<io::Resolver>(reactor_);
  looking_up_ = true;
  resolver_->resolve(target_.host, target_.port, [this](Result<std::vector<SockAddr>> found) {
    looking_up_ = false;
    if (state_ != State::resolving) return;
    if (!found) return lose(found.error().message);
    addresses_ = std::move(*found);
    connect_next();
  });
}

// The next address; the last one's failure is the dial's.
void ClientSocket::connect_next() {
  std::string why = "no address";
  while (next_address_ < addresses_.size()) {
    const SockAddr& to = addresses_[next_address_++];
    sockaddr_storage native{};
    int family = to.ip.is_v4() ? AF_INET : AF_INET6;
    socklen_t size = to.to_native(native, family);
    state_ = State::connecting;
    auto connected = connect(native, size, family);
    if (connected) return;
    why = connected.error().message;
    drop_socket();
  }
  lose(std::move(why));
}

Result<> ClientSocket::connect(const sockaddr_storage& to, socklen_t size, int family) {
  fd_.reset(::socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!fd_) return fail_errno("socket");
  if (family != AF_UNIX) {
    int on = 1;
    ::setsockopt(fd_.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    ::setsockopt(fd_.get(), SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
    int unacknowledged_ms = 30'000;
    ::setsockopt(fd_.get(), IPPROTO_TCP, TCP_USER_TIMEOUT, &unacknowledged_ms, sizeof unacknowledged_ms);
  }
  if (::connect(fd_.get(), reinterpret_cast<const sockaddr*>(&to), size) != 0 && errno != EINPROGRESS)
    return fail_errno("connect");
  // A connection that is made already reports EPOLLOUT at once.
  if (auto added = reactor_.add(fd_.get(), *this); !added) return added;
  registered_ = true;
  return {};
}

Result<> ClientSocket::begin_tls() {
  auto ssl = make_session(*target_.tls);
  if (!ssl) return std::unexpected(ssl.error());
  if (!buffers_) buffers_ = std::make_unique<io::Buffers>();
  tls_ = std::make_unique<tls::Stream>(std::move(*ssl), std::move(fd_), *buffers_);
  state_ = State::shaking_hands;
  return {};
}

void ClientSocket::on_events(uint32_t events) {
  if (state_ == State::connecting) {
    if (!(events & (EPOLLOUT | EPOLLERR | EPOLLHUP))) return;
    if (int error = io::take_error(fd_.get()); error != 0) {
      if (next_address_ >= addresses_.size() || !target_.unix_path.empty())
        return lose(std::string("connect: ") + std::strerror(error));
      drop_socket();
      return connect_next();
    }
    if (io::peer_address(fd_.get()).port == 0 && target_.unix_path.empty()) return;  // not yet
    if (!target_.tls) {
      state_ = State::open;
      return owner_.on_open();
    }
    if (auto begun = begin_tls(); !begun) return lose(begun.error().message);
  }
  if (tls_ && (events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR)))
    tls_->mark_readable((events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) != 0);
  if (state_ == State::shaking_hands) return advance_handshake();
  if (!send_kept()) return lose("the connection broke while sending");
  owner_.on_ready();
}

void ClientSocket::advance_handshake() {
  auto state = tls_->handshake();
  bool flushed = tls_->flush();
  if (state == tls::Stream::State::want && flushed) return;
  if (state == tls::Stream::State::failed)
    return lose("TLS: " + why_untrusted(tls_->ssl(), *target_.tls, tls_->last_error()));
  if (state != tls::Stream::State::ok || !flushed) return lose("TLS: the server ended the handshake");
  if (tls::agreed_protocol(tls_->ssl()) != "h2")
    return lose("TLS: the server does not speak HTTP/2 (ALPN h2)");
  state_ = State::open;
  owner_.on_open();
}

ClientSocket::Read ClientSocket::read() {
  if (tls_) {
    auto got = tls_->read();
    bool failed = got.state == tls::Stream::State::failed;
    return {got.bytes, got.drained, failed || got.state == tls::Stream::State::closed,
            failed ? "TLS: " + tls_->last_error() : std::string()};
  }
  if (!buffers_) buffers_ = std::make_unique<io::Buffers>();
  ssize_t got = 0;
  do got = ::recv(fd_.get(), buffers_->plain.get(), io::Buffers::kPlain, 0);
  while (got < 0 && errno == EINTR);
  if (got > 0) return {{buffers_->plain.get(), static_cast<size_t>(got)}, false, false, {}};
  if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return {};
  return {{}, true, true, got < 0 ? std::string("recv: ") + std::strerror(errno) : std::string()};
}

bool ClientSocket::write(std::string_view bytes) {
  if (tls_)
    return tls_->seal({reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()}) && tls_->flush();
  unsent_.append(bytes);
  return send_kept();
}

bool ClientSocket::send_kept() {
  if (tls_) return !tls_->blocked() || tls_->flush();
  while (!unsent_.empty()) {
    ssize_t sent = ::send(fd_.get(), unsent_.data(), unsent_.size(), MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent < 0) return errno == EAGAIN || errno == EWOULDBLOCK;
    unsent_.erase(0, static_cast<size_t>(sent));
  }
  return true;
}

}  // namespace nodemesh::http

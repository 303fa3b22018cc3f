#include "kube/api_connection.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>

#include <fmt/format.h>

#include "io/socket.h"
#include "tls/outgoing.h"

namespace nodemesh::kube {
namespace {

// A list page or an event passes through without being held, so the window may be wide.
constexpr http::H2Limits kLimits{.stream_window = 1 << 20};
constexpr size_t kMostStreams = 500;
constexpr int kReadsPerTurn = 16;

void set_option(int fd, int level, int name, int value) {
  ::setsockopt(fd, level, name, &value, sizeof value);
}

// A dead host is noticed within a minute where no PING is (HTTP/1.1).
void keep_alive(int fd) {
  set_option(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
  set_option(fd, IPPROTO_TCP, TCP_KEEPIDLE, 30);
  set_option(fd, IPPROTO_TCP, TCP_KEEPINTVL, 5);
  set_option(fd, IPPROTO_TCP, TCP_KEEPCNT, 3);
  set_option(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, 45'000);
  set_option(fd, IPPROTO_TCP, TCP_NODELAY, 1);
}

std::optional<seconds> parse_retry_after(std::string_view text) {
  uint32_t value = 0;  // the other form, a date, is not used by API servers
  auto [end, bad] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (text.empty() || bad != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return seconds(std::min<uint32_t>(value, 3600));
}

}  // namespace

Result<tls::SslPtr> make_api_ssl(const Access& access, std::string_view alpn) {
  auto roots = access.roots.read("the API server's root certificates");
  if (!roots) return std::unexpected(roots.error());
  auto certificate = access.certificate.read("client certificate");
  if (!certificate) return std::unexpected(certificate.error());
  auto key = access.key.read("client key");
  if (!key) return std::unexpected(key.error());
  if (!access.certificate.empty() && certificate->empty())
    return fail("client certificate: no certificate in " + access.origin);
  return tls::outgoing_ssl({.server_name = access.server_name,
                            .roots = *roots,
                            .roots_name = "the API server's root certificates: " + access.origin,
                            .system_roots = access.roots.empty(),
                            .certificate = *certificate,
                            .key = *key,
                            .client_name = access.origin,
                            .alpn = alpn});
}

std::string api_server_refused(SSL* ssl, const Access& access) {
  long verdict = SSL_get_verify_result(ssl);
  if (verdict == X509_V_OK) return {};
  std::string text =
      fmt::format("TLS: its certificate is not accepted: {}", X509_verify_cert_error_string(verdict));
  bool name = verdict == X509_V_ERR_HOSTNAME_MISMATCH || verdict == X509_V_ERR_IP_ADDRESS_MISMATCH;
  if (name) return text + fmt::format(" (it must be for {}); fix: set tls-server-name", access.server_name);
  return text + fmt::format("; fix: correct the root certificates in {}", access.origin);
}

void ApiExchange::on_headers(const http::HeaderBlock& headers, bool) {
  if (!head_seen && headers.status >= 200) on_head(headers);  // neither trailers nor interim
}

void ApiExchange::on_head(const http::HeaderBlock& head) {
  if (over_) return;
  auto encoding = head.find("content-encoding");
  if (!encoding.empty() && encoding != "identity") {
    auto* on = connection;
    finish(fail(fmt::format("the answer is compressed, which was not asked for ({})", encoding)), true);
    if (on != nullptr) on->give_up(*this);
    return;
  }
  head_seen = true;
  answer.status = head.status;
  answer.retry_after = parse_retry_after(head.find("retry-after"));
  owner_.on_exchange_head(*this, answer);
}

void ApiExchange::on_data(std::span<const iovec> pieces, size_t bytes) {
  auto* on = connection;
  for (const auto& piece : pieces) {
    if (over_ || connection == nullptr) return;  // given up
    on_body({static_cast<const char*>(piece.iov_base), piece.iov_len});
  }
  if (!over_ && connection != nullptr) on->session_->consume(*this, bytes);
}

void ApiExchange::on_body(std::string_view bytes) {
  if (!over_ && connection != nullptr && head_seen) owner_.on_exchange_bytes(*this, bytes);
}

http::H2Stream::Pull ApiExchange::pull(std::span<uint8_t> out) {
  size_t part = std::min(out.size(), request.body.size() - sent_);
  std::memcpy(out.data(), request.body.data() + sent_, part);
  sent_ += part;
  return {.bytes = part, .end = sent_ == request.body.size()};
}

void ApiExchange::on_close(http::H2Error error, bool processed) {
  auto* on = connection;
  if (on == nullptr) return;
  on->detach(*this);
  bool complete = end_seen_ && head_seen;
  auto how =
      complete ? Result<>{}
               : fail(fmt::format("the server reset the request (HTTP/2 error {})", static_cast<int>(error)));
  finish(std::move(how), processed);
  on->owner_.on_room(*on);
}

void ApiExchange::finish(Result<> how, bool processed) {
  if (std::exchange(over_, true)) return;
  owner_.on_exchange_end(*this, std::move(how), processed);
}

ApiConnection::ApiConnection(io::Reactor& reactor, io::Buffers& buffers, Owner& owner, const Access& access,
                             const ApiTimes& times)
    : reactor_(reactor),
      buffers_(buffers),
      owner_(owner),
      access_(access),
      times_(times),
      last_contact_(reactor.now()),
      timer_([this] { close(state_ == State::open ? "idle" : "no connection within the time for it"); }),
      ping_timer_([this] { ping(); }),
      flush_due_([this] { flush(); }) {}

ApiConnection::~ApiConnection() {
  if (state_ == State::connecting) reactor_.remove(connecting_.get(), *this, true);
  if (stream_ && state_ != State::closed) reactor_.remove(stream_->fd(), *this, true);
  for (auto* exchange : exchanges_) {
    if (session_) session_->abandon(*exchange, http::H2Error::cancel);
  }
}

Result<> ApiConnection::dial(const SockAddr& to, tls::SslPtr ssl) {
  peer_ = to.to_string();
  int family = to.ip.is_v4() ? AF_INET : AF_INET6;
  sockaddr_storage native{};
  socklen_t size = to.to_native(native, family);
  connecting_.reset(::socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!connecting_) return fail_errno("socket");
  keep_alive(connecting_.get());
  ssl_ = std::move(ssl);
  int made = ::connect(connecting_.get(), reinterpret_cast<sockaddr*>(&native), size);
  if (made != 0 && errno != EINPROGRESS) return fail_errno(peer_ + ": connect");
  if (auto added = reactor_.add(connecting_.get(), *this); !added) return added;
  state_ = State::connecting;
  timer_.arm(reactor_, times_.connect);
  return {};
}

void ApiConnection::on_events(uint32_t events) {
  if (state_ == State::connecting) {
    if ((events & (EPOLLOUT | EPOLLERR | EPOLLHUP)) == 0) return;
    if (int error = io::take_error(connecting_.get()); error != 0)
      return close(std::string("connect: ") + std::strerror(error));
    if ((events & EPOLLOUT) == 0) return;
    connected();
  }
  if (state_ == State::closed) return;
  bool ended = (events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) != 0;
  if (ended || (events & EPOLLIN)) stream_->mark_readable(ended);
  if (state_ == State::handshaking) shake_hands();
  if (state_ != State::open) return;
  read_all();
  flush();
}

void ApiConnection::connected() {
  // The stream's handler is the same object, so the registration stays.
  stream_ = std::make_unique<tls::Stream>(std::move(ssl_), std::move(connecting_), buffers_);
  state_ = State::handshaking;
}

void ApiConnection::shake_hands() {
  auto state = stream_->handshake();
  std::string why = "TLS: the server closed the connection";
  if (state == tls::Stream::State::failed) {
    why = api_server_refused(stream_->ssl(), access_);
    if (why.empty()) why = "TLS: " + stream_->last_error();
  }
  bool sent = stream_->flush();
  if (state == tls::Stream::State::ok && sent) return opened();
  if (state == tls::Stream::State::want && sent) return;
  close(std::move(why));
}

void ApiConnection::opened() {
  state_ = State::open;
  last_contact_ = reactor_.now();
  if (tls::agreed_protocol(stream_->ssl()) == "h2") {
    timer_.cancel();
    session_ = std::make_unique<http::H2Session>(http::H2Session::Role::client,
                                                 static_cast<http::H2SessionOwner&>(*this), kLimits);
    ping_timer_.arm(reactor_, times_.ping_interval);
  } else {
    timer_.arm(reactor_, times_.idle);
  }
  owner_.on_open(*this);
}

bool ApiConnection::has_room() const {
  if (state_ != State::open || !closing_.empty() || going_away_) return false;
  if (!session_) return current_ == nullptr;
  return session_->open_streams() < std::min<size_t>(session_->peer_max_streams(), kMostStreams);
}

void ApiConnection::send(ApiExchange& exchange) {
  const auto& request = exchange.request;
  exchange.connection = this;
  exchanges_.push_back(&exchange);
  std::string bearer = exchange.token.empty() ? "" : "Bearer " + exchange.token;
  std::string length = std::to_string(request.body.size()), path = access_.path_prefix + request.path;
  bool has_body = !request.body.empty() || request.verb == Verb::post || request.verb == Verb::put;
  if (session_) {
    std::string to = access_.authority();
    std::vector<http::HeaderField> fields = {{":method", verb_name(request.verb)},
                                             {":scheme", "https"},
                                             {":authority", to},
                                             {":path", path, true},
                                             {"accept", request.accept},
                                             {"user-agent", "nodemesh"}};
    if (!bearer.empty()) fields.push_back({"authorization", bearer});
    if (has_body) {
      fields.push_back({"content-type", request.content_type});
      fields.push_back({"content-length", length, true});
    }
    if (auto made = session_->open(exchange, fields); !made) close_later(made.error().message);
    return flush_due_.schedule(reactor_);
  }
  timer_.cancel();
  current_ = &exchange;
  response_ = std::make_unique<H1Response>(static_cast<H1Response::Reader&>(exchange));
  std::string text = fmt::format("{} {} HTTP/1.1\r\nHost: {}\r\nAccept: {}\r\nUser-Agent: nodemesh\r\n",
                                 verb_name(request.verb), path, access_.authority(), request.accept);
  if (!bearer.empty()) text += "Authorization: " + bearer + "\r\n";
  if (has_body)
    text += fmt::format("Content-Type: {}\r\nContent-Length: {}\r\n", request.content_type, length);
  text += "\r\n" + request.body;
  // Sent at once: what is sealed lies in a buffer that other connections use too.
  bool sent = stream_->seal({reinterpret_cast<const uint8_t*>(text.data()), text.size()}) && stream_->flush();
  if (!sent) close_later("the connection broke");
}

void ApiConnection::give_up(ApiExchange& exchange) {
  if (exchange.connection != this) return;
  if (session_) session_->abandon(exchange, http::H2Error::cancel);
  bool was_current = current_ == &exchange;
  detach(exchange);
  if (was_current) return close_later("its request was given up");
  flush_due_.schedule(reactor_);
}

void ApiConnection::detach(ApiExchange& exchange) {
  std::erase(exchanges_, &exchange);
  if (current_ == &exchange) current_ = nullptr;
  exchange.connection = nullptr;
}

void ApiConnection::read_all() {
  reading_ = true;
  for (int i = 0; i < kReadsPerTurn && closing_.empty(); ++i) {
    auto read = stream_->read();
    if (!read.bytes.empty()) {
      last_contact_ = reactor_.now();
      if (!take(read.bytes)) break;
    }
    if (read.state == tls::Stream::State::closed || read.state == tls::Stream::State::failed) {
      bool failed = read.state == tls::Stream::State::failed;
      close_later(failed ? "TLS: " + stream_->last_error() : "the server closed the connection");
    }
    if (read.drained) break;
    // More is in the socket, and no event will say so.
    if (i + 1 == kReadsPerTurn)
      reactor_.post([this, alive = std::weak_ptr(alive_)] {
        if (alive.lock() && state_ == State::open) on_events(EPOLLIN);
      });
  }
  reading_ = false;
}

bool ApiConnection::take(std::span<const uint8_t> bytes) {
  if (!session_) return take_h1({reinterpret_cast<const char*>(bytes.data()), bytes.size()});
  if (session_->feed(bytes)) return true;
  close_later("HTTP/2: " + session_->error().message);
  return false;
}

bool ApiConnection::take_h1(std::string_view bytes) {
  if (current_ == nullptr) {
    close_later("the server sent bytes that nobody asked for");
    return false;
  }
  auto used = response_->feed(bytes);
  if (!used) {
    close_later(used.error().message);
    return false;
  }
  if (current_ == nullptr) return false;  // given up
  if (!response_->done()) return true;
  bool keep = response_->keep_alive() && *used == bytes.size();
  auto& exchange = *current_;
  detach(exchange);
  used_before_ = true;
  if (!keep) close_later("the server ends the connection");
  exchange.finish({}, true);
  if (keep) {
    timer_.arm(reactor_, times_.idle);
    owner_.on_room(*this);
  }
  return keep;
}

void ApiConnection::flush() {
  if (state_ != State::open || reading_) return;
  if (session_ && closing_.empty())
    write_h2();
  else if (!stream_->flush() && closing_.empty())
    closing_ = "the connection broke";
  if (closing_.empty() && session_ && going_away_ && exchanges_.empty())
    closing_ = "the server is going away";
  if (!closing_.empty()) close(closing_);
}

void ApiConnection::write_h2() {
  bool fine = !stream_->blocked() || stream_->flush();
  while (fine && !stream_->blocked()) {
    size_t size = session_->drain({buffers_.gather.get(), io::Buffers::kGather});
    if (size == 0) break;
    fine = stream_->seal({buffers_.gather.get(), size}) && stream_->flush();
  }
  if (!fine) closing_ = "the connection broke";
}

void ApiConnection::on_goaway() {
  going_away_ = true;
  flush_due_.schedule(reactor_);
}

void ApiConnection::on_ping_ack(http::H2Ping) {
  pinged_ = false;
  ping_timer_.arm(reactor_, times_.ping_interval);
}

void ApiConnection::ping() {
  if (pinged_) return close("no answer to PING within the time for it");
  pinged_ = true;
  session_->ping(http::H2Ping::alive);
  ping_timer_.arm(reactor_, times_.ping_timeout);
  flush();
}

void ApiConnection::close_later(std::string why) {
  if (closing_.empty()) closing_ = std::move(why);
  flush_due_.schedule(reactor_);
}

void ApiConnection::close(std::string why) {
  if (state_ == State::closed) return;
  bool was_open = state_ == State::open;
  int fd = stream_ ? stream_->fd() : connecting_.get();
  state_ = State::closed;
  reactor_.remove(fd, *this);
  timer_.cancel();
  ping_timer_.cancel();
  // The server may have closed it just when the request left: nothing of an answer, nothing to undo.
  bool unheard = !session_ && used_before_ && response_ && !response_->begun();
  for (auto* exchange : std::exchange(exchanges_, {})) {
    if (session_) session_->abandon(*exchange, http::H2Error::cancel);
    exchange->connection = nullptr;
    exchange->finish(fail(fmt::format("{}: {}", peer_, why)),
                     !(unheard && exchange->request.verb == Verb::get));
  }
  current_ = nullptr;
  // The socket goes now; what else there is goes with this object.
  ::shutdown(fd, SHUT_RDWR);
  owner_.on_closed(*this, was_open, Error{Reason::CONNECT_FAILED, fmt::format("{}: {}", peer_, why)});
}

}  // namespace nodemesh::kube

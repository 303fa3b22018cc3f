#include "ctl/port_forward.h"

#include <openssl/err.h>
#include <poll.h>

#include <optional>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "ctl/dial.h"
#include "ctl/websocket.h"
#include "kube/api_client.h"
#include "kube/api_connection.h"
#include "kube/h1_response.h"
#include "tls/openssl.h"

namespace nodemesh::ctl {
namespace {

constexpr std::string_view kSubprotocol = "v4.channel.k8s.io";
constexpr size_t kMaxHead = 60 * 1024;
constexpr size_t kChunk = 16 * 1024;
// Each port has two channels, in the order of the query; the first two bytes of each are the port's number.
constexpr uint8_t kDataChannel = 0, kErrorChannel = 1;

std::unexpected<Error> unreachable(std::string why) {
  return fail(Reason::CONNECT_FAILED, std::move(why));
}

// TLS on a non-blocking socket, waited for.
class ApiSocket {
 public:
  explicit ApiSocket(Monotonic::time_point until) : until_(until) {}

  Result<> open(const kube::Access& access) {
    auto ssl = kube::make_api_ssl(access, "\x08http/1.1");
    if (!ssl) return std::unexpected(ssl.error());
    ssl_ = std::move(*ssl);
    auto addresses = addresses_of(access.host, access.port);
    if (addresses.empty()) return unreachable("no address has the name " + access.host);
    Result<Fd> made = unreachable("");
    for (size_t i = 0; i < addresses.size() && !made; ++i) made = dial(addresses[i], until_);
    if (!made) return std::unexpected(made.error());
    fd_ = std::move(*made);
    SSL_set_fd(ssl_.get(), fd_.get());
    auto done = repeat([&] { return SSL_do_handshake(ssl_.get()); }, "the TLS handshake");
    if (done) return {};
    auto refused = kube::api_server_refused(ssl_.get(), access);
    return refused.empty() ? Result<>(std::unexpected(done.error())) : unreachable(std::move(refused));
  }

  Result<> write(std::string_view bytes) {
    while (!bytes.empty()) {
      auto part = repeat([&] { return SSL_write(ssl_.get(), bytes.data(), static_cast<int>(bytes.size())); },
                         "sending");
      if (!part) return std::unexpected(part.error());
      if (*part == 0) return unreachable("the API server closed the connection");
      bytes.remove_prefix(*part);
    }
    return {};
  }

  // Empty at the end of the connection.
  Result<std::string_view> read() {
    auto got = repeat([&] { return SSL_read(ssl_.get(), chunk_.data(), static_cast<int>(chunk_.size())); },
                      "receiving");
    if (!got) return std::unexpected(got.error());
    return std::string_view(chunk_.data(), *got);
  }

 private:
  // 0: the peer has closed. A peer that always has something to say meets the deadline too.
  template <class Call>
  Result<size_t> repeat(Call call, const char* what) {
    for (;;) {
      if (Monotonic::now() >= until_) return unreachable("no answer in time");
      ERR_clear_error();
      int result = call();
      if (result > 0) return static_cast<size_t>(result);
      int error = SSL_get_error(ssl_.get(), result);
      if (error == SSL_ERROR_ZERO_RETURN) return size_t{0};
      if (error != SSL_ERROR_WANT_READ && error != SSL_ERROR_WANT_WRITE)
        return unreachable(fmt::format("TLS: {}: {}", what, tls::take_openssl_error()));
      if (!wait_ready(fd_.get(), error == SSL_ERROR_WANT_READ ? POLLIN : POLLOUT, until_))
        return unreachable("no answer in time");
    }
  }

  Monotonic::time_point until_;
  Fd fd_;
  tls::SslPtr ssl_;
  std::vector<char> chunk_ = std::vector<char>(kChunk);
};

// What the API server answers instead of switching protocols.
class Refusal final : private kube::H1Response::Reader {
 public:
  Result<> feed(std::string_view bytes) {
    auto used = response_.feed(bytes);
    return used ? Result<>() : std::unexpected(used.error());
  }
  bool done() const { return response_.done() || body_.size() > kMaxHead; }
  int status() const { return status_; }
  std::string text() const { return kube::failure_text(status_, body_); }

 private:
  void on_head(const http::HeaderBlock& head) override { status_ = head.status; }
  void on_body(std::string_view bytes) override { body_.append(bytes); }

  int status_ = 0;
  std::string body_;
  kube::H1Response response_{static_cast<kube::H1Response::Reader&>(*this)};
};

class Exchange final : private WebSocketReader::Owner {
 public:
  Exchange(const kube::Access& access, const PodPort& to, Monotonic::time_point until)
      : access_(access), to_(to), socket_(until) {}

  Result<HttpResponse> run(std::string_view method, std::string_view path) {
    if (auto opened = socket_.open(access_); !opened) return std::unexpected(opened.error());
    auto rest = upgrade();
    if (!rest) return std::unexpected(rest.error());
    if (auto sent = send(WebSocketFrame::binary, std::string(1, kDataChannel) + request_text(method, path));
        !sent)
      return std::unexpected(sent.error());
    std::string_view bytes = *rest;
    for (;;) {
      if (auto taken = reader_.feed(bytes); !taken) return std::unexpected(taken.error());
      if (!said_.empty()) return unreachable("port-forward: " + said_);
      auto answer = parse_response(answer_, ended_);
      if (!answer || answer->status != 0) return answer;
      auto more = socket_.read();
      if (!more) return std::unexpected(more.error());
      if (more->empty()) ended_ = true;
      bytes = *more;
    }
  }

 private:
  Result<std::string> request(const std::string& key) {
    auto token = kube::TokenCache(access_.token, clock_).token();
    if (!token) return std::unexpected(token.error());
    std::string bearer = token->empty() ? "" : "Authorization: Bearer " + *token + "\r\n";
    return fmt::format(
        "GET {}/api/v1/namespaces/{}/pods/{}/portforward?ports={} HTTP/1.1\r\nHost: {}\r\nUser-Agent: "
        "nodemesh\r\n{}Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: {}\r\nSec-WebSocket-Protocol: {}\r\n\r\n",
        access_.path_prefix, kube::percent_encode(to_.ns), kube::percent_encode(to_.pod), to_.port,
        access_.authority(), bearer, key, kSubprotocol);
  }

  // What came after the server's head.
  Result<std::string> upgrade() {
    auto key = make_websocket_key();
    if (!key) return key;
    auto text = request(*key);
    if (!text) return text;
    if (auto sent = socket_.write(*text); !sent) return std::unexpected(sent.error());
    std::string head;
    size_t end = head.npos;
    while (end == head.npos) {
      auto more = socket_.read();
      if (!more) return std::unexpected(more.error());
      if (more->empty()) return unreachable("the API server closed the connection");
      head += *more;
      end = head.find("\r\n\r\n");
      if (head.size() > kMaxHead) return fail("the API server answered with too long a head");
    }
    if (!head.starts_with("HTTP/1.1 101 ")) return refused(head);
    auto switched = check_upgrade(std::string_view(head).substr(0, end), *key, kSubprotocol);
    if (!switched) return std::unexpected(switched.error());
    return head.substr(end + 4);
  }

  std::unexpected<Error> refused(std::string_view bytes) {
    Refusal refusal;
    auto fed = refusal.feed(bytes);
    while (fed && !refusal.done()) {
      auto more = socket_.read();
      if (!more && refusal.status() == 0) return std::unexpected(more.error());
      if (!more || more->empty()) break;
      fed = refusal.feed(*more);
    }
    if (refusal.status() == 0) return fail("the API server's answer is no HTTP");
    if (refusal.status() == 401 || refusal.status() == 403)
      return fail(refusal.text() + "; fix: a role with get and create on pods/portforward");
    return unreachable(refusal.text());
  }

  Result<> send(WebSocketFrame kind, std::string_view payload) {
    auto frame = websocket_frame(kind, payload);
    return frame ? socket_.write(*frame) : Result<>(std::unexpected(frame.error()));
  }

  Result<> on_message(std::string_view bytes) override {
    if (bytes.empty()) return {};
    auto channel = static_cast<uint8_t>(bytes.front());
    bytes.remove_prefix(1);
    if (channel != kDataChannel && channel != kErrorChannel)
      return fail("port-forward: a channel that was not asked for");
    if (!std::exchange(begun_[channel], true)) {
      if (bytes.size() != 2) return fail("port-forward: a channel begins with something else than its port");
      return {};
    }
    (channel == kDataChannel ? answer_ : said_) += bytes;
    return answer_.size() > kMaxAnswer || said_.size() > kMaxHead ? fail("the answer exceeds 256 MiB")
                                                                  : Result<>();
  }
  void on_ping(std::string_view payload) override {
    // A connection that broke is found by the next read.
    (void)send(WebSocketFrame::pong, payload);
  }
  void on_close() override { ended_ = true; }

  const kube::Access& access_;
  const PodPort& to_;
  Clock clock_;
  ApiSocket socket_;
  WebSocketReader reader_{static_cast<WebSocketReader::Owner&>(*this)};
  bool begun_[2] = {};
  bool ended_ = false;
  std::string answer_, said_;
};

}  // namespace

Result<HttpResponse> http_through_api_server(const kube::Access& access, const PodPort& to,
                                             std::string_view method, std::string_view path,
                                             milliseconds deadline) {
  auto answer = Exchange(access, to, Monotonic::now() + deadline).run(method, path);
  if (answer) return answer;
  auto what = fmt::format("cannot reach Pod {}/{} through {}: {}", to.ns, to.pod, access.url(),
                          answer.error().message);
  return fail(answer.error().reason, std::move(what));
}

}  // namespace nodemesh::ctl

// meshctl's exchange with an agent through an API server that is hostile or broken: each case is a server of
// its own, over real TLS.
#include <doctest/doctest.h>

#include <netinet/in.h>
#include <signal.h>
#include <sys/socket.h>

#include <functional>
#include <string>
#include <thread>

#include "base/fd.h"
#include "ctl/port_forward.h"
#include "ctl/websocket.h"
#include "support/certs.h"

using namespace nodemesh;
using namespace nodemesh::ctl;
using namespace nodemesh::test;

namespace {

constexpr std::string_view kPort("\x9a\x3a", 2);  // little-endian, as kubelet writes it
const std::string kAnswer = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello";

std::string frame(uint8_t first, std::string_view payload) {
  std::string out(1, static_cast<char>(first));
  if (payload.size() < 126) {
    out += static_cast<char>(payload.size());
  } else {
    out += '\x7e';
    out += static_cast<char>(payload.size() >> 8);
    out += static_cast<char>(payload.size() & 0xff);
  }
  return out.append(payload);
}
std::string message(uint8_t channel, std::string_view bytes) {
  return frame(0x82, std::string(1, static_cast<char>(channel)).append(bytes));
}
const std::string kBegun = message(0, kPort) + message(1, kPort);

// One connection of an API server, blocking, on a thread of its own. The client may leave at any time.
class Peer {
 public:
  explicit Peer(SSL* ssl) : ssl_(ssl) {}
  bool send(std::string_view bytes) {
    while (open_ && !bytes.empty()) {
      int wrote = SSL_write(ssl_, bytes.data(), static_cast<int>(bytes.size()));
      open_ = wrote > 0;
      if (open_) bytes.remove_prefix(static_cast<size_t>(wrote));
    }
    return open_;
  }
  // The request, up to its empty line.
  std::string request() {
    std::string text;
    while (open_ && text.find("\r\n\r\n") == text.npos) text += read();
    return text;
  }
  std::string read() {
    char bytes[4096];
    int got = SSL_read(ssl_, bytes, sizeof bytes);
    open_ = got > 0;
    return {bytes, open_ ? static_cast<size_t>(got) : 0};
  }
  void switch_protocols(const std::string& accept = "", const std::string& more = "",
                        const std::string& behind = "") {
    auto text = request();
    static constexpr std::string_view kField = "Sec-WebSocket-Key: ";
    size_t at = text.find(kField);
    auto key = at == text.npos ? "" : text.substr(at + kField.size(), 24);
    send(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Accept: " +
        (accept.empty() ? websocket_accept(key) : accept) +
        "\r\nSec-WebSocket-Protocol: v4.channel.k8s.io\r\n" + more + "\r\n" + behind);
  }

 private:
  SSL* ssl_;
  bool open_ = true;
};

class ScriptedServer {
 public:
  explicit ScriptedServer(std::function<void(Peer&)> script) : script_(std::move(script)) {
    ::signal(SIGPIPE, SIG_IGN);
    auto issued = ca_.issue({.dns = {"kubernetes"}});
    auto chain = *tls::parse_certificates(issued.chain_pem);
    auto key = *tls::parse_private_key(issued.key_pem);
    context_.reset(SSL_CTX_new(TLS_server_method()));
    SSL_CTX_use_certificate(context_.get(), chain.front().get());
    REQUIRE(SSL_CTX_use_PrivateKey(context_.get(), key.get()) == 1);
    listener_.reset(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_in address{.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t size = sizeof address;
    REQUIRE(::bind(listener_.get(), reinterpret_cast<sockaddr*>(&address), size) == 0);
    REQUIRE(::listen(listener_.get(), 1) == 0);
    REQUIRE(::getsockname(listener_.get(), reinterpret_cast<sockaddr*>(&address), &size) == 0);
    port_ = ntohs(address.sin_port);
    thread_ = std::jthread([this] { serve(); });
  }

  Result<HttpResponse> ask(milliseconds deadline = seconds(10)) const {
    kube::Access access{.host = "127.0.0.1", .port = port_, .server_name = "kubernetes"};
    access.roots.text = ca_.root_pem();
    access.token.text = "the-token";
    access.origin = "the test";
    return http_through_api_server(access, {"mesh", "agent-1", 15000}, "GET", "/status", deadline);
  }

 private:
  void serve() {
    timeval limit{.tv_sec = 10, .tv_usec = 0};
    ::setsockopt(listener_.get(), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    Fd fd(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
    ::setsockopt(fd.get(), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    ::setsockopt(fd.get(), SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    tls::SslPtr ssl(SSL_new(context_.get()));
    SSL_set_fd(ssl.get(), fd.get());
    if (SSL_accept(ssl.get()) != 1) return;
    Peer peer(ssl.get());
    script_(peer);
    // Closed with bytes unread, the kernel would take back what was sent last.
    ::shutdown(fd.get(), SHUT_WR);
    while (!peer.read().empty()) continue;
  }

  TestCa ca_{"kubernetes ca", KeyKind::p256};
  std::function<void(Peer&)> script_;
  tls::SslCtxPtr context_;
  Fd listener_;
  uint16_t port_ = 0;
  std::jthread thread_;
};

// What the client makes of a server that switches protocols and then sends `bytes` and leaves.
Result<HttpResponse> after_upgrade(std::string bytes) {
  return ScriptedServer([&](Peer& peer) {
           peer.switch_protocols();
           peer.send(bytes);
         })
      .ask();
}

std::string why(const Result<HttpResponse>& answer) {
  return answer ? "an answer" : answer.error().message;
}

bool has(const std::string& text, std::string_view part) {
  return text.find(part) != text.npos;
}

}  // namespace

TEST_CASE("an agent's answer comes through the API server, in whatever frames and among whatever pings") {
  std::string request;
  ScriptedServer server([&](Peer& peer) {
    peer.switch_protocols();
    request = peer.read();
    peer.send(kBegun + frame(0x89, "are you there"));
    auto data = std::string(1, '\0') + kAnswer;
    for (size_t i = 0; i < data.size(); ++i) {
      bool last = i + 1 == data.size();
      peer.send(frame(static_cast<uint8_t>((i == 0 ? 0x02 : 0) | (last ? 0x80 : 0)), data.substr(i, 1)));
      if (i == 20) peer.send(frame(0x89, "") + frame(0x8a, "unasked"));
    }
    peer.send(frame(0x88, ""));
  });
  auto answer = server.ask();
  REQUIRE_MESSAGE(answer, why(answer));
  CHECK(answer->status == 200);
  CHECK(answer->body == "hello");
  CHECK((request[1] & 0x80) != 0);  // masked
}

TEST_CASE("an answer in one piece with the head that switches protocols is not lost") {
  auto answer =
      ScriptedServer([](Peer& peer) { peer.switch_protocols("", "", kBegun + message(0, kAnswer)); }).ask();
  REQUIRE_MESSAGE(answer, why(answer));
  CHECK(answer->body == "hello");
}

TEST_CASE("frames that break the protocol end the exchange with what was wrong") {
  struct Case {
    std::string bytes, says;
  };
  const Case cases[] = {
      {kBegun + std::string("\x82\x81\1\2\3\4x", 7), "masked"},
      {kBegun + std::string("\x82\x7f\xff\xff\xff\xff\xff\xff\xff\xff", 10), "more than 16 MiB"},
      {kBegun + std::string("\x82\x7f\0\0\0\0\x01\0\0\1", 10), "more than 16 MiB"},
      {kBegun + std::string("\x09\1!", 3), "control frame"},
      {kBegun + std::string("\x08\0", 2), "control frame"},
      {kBegun + std::string("\x80\1!", 3), "continued"},
      {kBegun + std::string("\x02\2\0H\x02\2\0T", 8), "within another"},
      {kBegun + std::string("\x81\1!", 3), "neither binary nor control"},
      {kBegun + std::string("\xc2\1\0", 3), "extension"},
      {kBegun + message(7, "hello"), "channel"},
      {message(0, "x"), "its port"},
      {message(0, kAnswer), "its port"},
  };
  for (const auto& one : cases) {
    CAPTURE(one.says);
    auto answer = after_upgrade(one.bytes);
    CHECK_FALSE(answer);
    INFO(why(answer));
    CHECK(has(why(answer), one.says));
  }
}

TEST_CASE("a connection that ends early is no answer, wherever it ends") {
  auto whole = kBegun + message(0, kAnswer);
  for (size_t size : {size_t{0}, size_t{1}, size_t{3}, kBegun.size(), whole.size() - 1}) {
    CAPTURE(size);
    CHECK_FALSE(after_upgrade(whole.substr(0, size)));
    CHECK_FALSE(after_upgrade(whole.substr(0, size) + (size == kBegun.size() ? frame(0x88, "") : "")));
  }
  CHECK_FALSE(after_upgrade(kBegun + message(0, kAnswer.substr(0, 30)) + frame(0x88, "")));
  CHECK_FALSE(after_upgrade(kBegun + std::string("\x02\3\0HT", 5) + frame(0x88, "")));
  CHECK(after_upgrade(whole));
}

TEST_CASE("what the pod's side has to say is told in its words") {
  auto answer = after_upgrade(kBegun + message(1, "no such port"));
  CHECK(has(why(answer), "port-forward: no such port"));
}

TEST_CASE("an API server that does not switch protocols as asked is told from one that refuses") {
  auto says = [](const std::string& bytes) {
    return why(ScriptedServer([&](Peer& peer) {
                 peer.request();
                 peer.send(bytes);
               }).ask());
  };
  CHECK(has(
      why(ScriptedServer([](Peer& peer) { peer.switch_protocols("AAAAAAAAAAAAAAAAAAAAAAAAAAA="); }).ask()),
      "another's request"));
  CHECK(has(why(ScriptedServer([](Peer& peer) {
                  peer.switch_protocols("", "Sec-WebSocket-Extensions: permessage-deflate\r\n");
                }).ask()),
            "extension"));
  CHECK(has(says("HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n"), "role"));
  CHECK(has(says("HTTP/1.1 500 Oops\r\ncontent-length: 99999\r\n\r\ncut"), "500"));
  CHECK(has(says("SSH-2.0-OpenSSH\r\n\r\n"), "no HTTP"));
  CHECK(has(says("HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n"), "no HTTP"));
  CHECK(has(says(""), "cannot reach Pod mesh/agent-1 through https://127.0.0.1"));
  CHECK(has(says("HTTP/1.1 101 Switching Protocols\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n"),
            "another protocol"));
}

TEST_CASE("headers without end are given up at a bound") {
  std::string line = "x-more: " + std::string(1000, 'x') + "\r\n";
  for (const char* first : {"HTTP/1.1 101 Switching Protocols\r\n", "HTTP/1.1 403 Forbidden\r\n"}) {
    size_t sent = 0;
    auto answer = ScriptedServer([&](Peer& peer) {
                    peer.request();
                    for (peer.send(first); sent < (64u << 20) && peer.send(line);) sent += line.size();
                  }).ask();
    CHECK_FALSE(answer);
    CHECK(sent < (64u << 20));
  }
}

// Each server goes on for longer than the client may wait, and would then be answered well.
TEST_CASE("a server that keeps talking does not outlast the deadline") {
  auto says = [](bool upgraded, const std::string& noise, const std::string& end) {
    return why(ScriptedServer([&](Peer& peer) {
                 if (upgraded) {
                   peer.switch_protocols();
                   peer.send(kBegun);
                 } else {
                   peer.request();
                 }
                 auto until = Monotonic::now() + seconds(5);
                 while (Monotonic::now() < until && peer.send(noise)) continue;
                 peer.send(end);
               }).ask(milliseconds(500)));
  };
  CHECK(has(says(true, frame(0x8a, ""), message(0, kAnswer)), "in time"));
  CHECK(has(says(true, frame(0x82, ""), message(0, kAnswer)), "in time"));
  CHECK(has(says(true, message(0, ""), message(0, kAnswer)), "in time"));
  CHECK(has(says(false, "HTTP/1.1 100 Continue\r\n\r\n", "HTTP/1.1 403 No\r\ncontent-length: 0\r\n\r\n"),
            "no HTTP"));
}

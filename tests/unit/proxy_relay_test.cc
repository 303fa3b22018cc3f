// Relays over loopback sockets: bytes, ends and resets from one side to the other, in order and never
// softened.
#include <doctest/doctest.h>

#include <memory>
#include <optional>
#include <string>

#include "http/hbone.h"
#include "io_pairs.h"
#include "proxy/relay.h"
#include "telemetry/recorder.h"
#include "telemetry/registry.h"
#include "tls_pairs.h"

using namespace nodemesh;
using namespace nodemesh::proxy;
using namespace nodemesh::test;

namespace {

struct Base {
  Clock clock;
  io::Reactor reactor;
  io::Buffers buffers;
  telemetry::Metrics metrics{{}, clock};
  telemetry::AccessLog log{reactor};
  telemetry::Denials denials;
  telemetry::Recorder recorder{0, clock, metrics.shard(0), log, denials, reactor};
};

// The application at the far side of each end of a TcpRelay, and the relay between.
struct Joined final : Base, RelayOwner {
  explicit Joined(int server_buffer = 0) {
    relay.emplace(reactor, buffers, record, static_cast<RelayOwner&>(*this));
    auto [near_client, far_client] = tcp_pair();
    auto [near_server, far_server] = tcp_pair(server_buffer, server_buffer);
    REQUIRE(relay->client.adopt(std::move(near_client)));
    REQUIRE(relay->server.adopt(std::move(near_server)));
    client = std::move(far_client);
    server = std::move(far_server);
  }
  ~Joined() { record.complete(); }
  void on_relay_done(const Error& error) override {
    ++done;
    why = error.reason;
    if (die) relay.reset();
  }
  void on_relay_connected(int) override {}
  template <class Done>
  void until(Done condition) {
    turn_until(reactor, [&] {
      at_client.take(client);
      if (server_reads) at_server.take(server);
      return condition();
    });
  }
  telemetry::Record record{recorder, telemetry::Direction::outbound};
  std::optional<TcpRelay> relay;
  Fd client, server;
  Received at_client, at_server;
  bool server_reads = true, die = false;
  int done = 0;
  Reason why = Reason::INTERNAL;
};

}  // namespace

TEST_CASE("a relay carries both directions, half closes in order, and ends well once") {
  Joined joined;
  joined.relay->start();
  send_all(joined.client, "question");
  ::shutdown(joined.client.get(), SHUT_WR);
  joined.until([&] { return joined.at_server.ended; });
  CHECK(joined.at_server.text == "question");
  CHECK(joined.done == 0);
  send_all(joined.server, "answer");
  joined.server.reset();
  turn_until(joined.reactor, [&] { return joined.at_client.take(joined.client), joined.at_client.ended; });
  CHECK(joined.at_client.text == "answer");
  CHECK(joined.done == 1);
  CHECK(joined.why == Reason::NONE);
  CHECK(joined.record.from_client() == 8);
  CHECK(joined.record.from_server() == 6);
}

TEST_CASE("what was sent before the relay began is carried, its end too") {
  Joined joined;
  send_all(joined.client, "early");
  ::shutdown(joined.client.get(), SHUT_WR);
  turns(joined.reactor, 3);
  joined.relay->start();
  joined.until([&] { return joined.at_server.ended; });
  CHECK(joined.at_server.text == "early");
}

TEST_CASE("a slow reader holds back the sender and still gets every byte and then the end") {
  Joined joined(8192);
  joined.relay->start();
  joined.server_reads = false;
  auto text = pattern(8 << 20);
  size_t sent = 0;
  auto push = [&] {
    while (sent < text.size()) {
      ssize_t count = ::send(joined.client.get(), text.data() + sent, text.size() - sent, MSG_NOSIGNAL);
      if (count <= 0) return;
      sent += static_cast<size_t>(count);
    }
    ::shutdown(joined.client.get(), SHUT_WR);
  };
  for (int i = 0; i < 100; ++i) push(), joined.reactor.run_once(milliseconds(0));
  CHECK(joined.relay->server.kept() <= 128 * 1024);
  CHECK(sent < text.size());
  joined.server_reads = true;
  joined.until([&] { return push(), joined.at_server.ended; });
  CHECK(joined.at_server.text == text);
}

TEST_CASE("a reset at either end is a reset at the other, told once") {
  for (bool by_client : {true, false}) {
    CAPTURE(by_client);
    Joined joined;
    joined.relay->start();
    send_all(joined.client, "x");
    send_all(joined.server, "y");
    joined.until([&] { return !joined.at_server.text.empty() && !joined.at_client.text.empty(); });
    io::close_with_reset(by_client ? joined.client : joined.server);
    auto& other = by_client ? joined.at_server : joined.at_client;
    turn_until(joined.reactor, [&] {
      other.take(by_client ? joined.server : joined.client);
      return other.reset || other.ended;
    });
    CHECK(other.reset);
    CHECK(joined.done == 1);
    CHECK(joined.why == Reason::PEER_RESET);
    turns(joined.reactor, 3);
    CHECK(joined.done == 1);
  }
}

TEST_CASE("a relay that is aborted in the middle of a bulk transfer is not heard of again") {
  for (bool destroy : {false, true}) {
    Joined joined;
    joined.relay->start();
    auto text = pattern(64 << 20);
    size_t sent = 0;
    bool aborted = false;
    for (int turn = 0; turn < 400 && !aborted; ++turn) {
      while (sent < text.size()) {
        ssize_t count = ::send(joined.client.get(), text.data() + sent, text.size() - sent, MSG_NOSIGNAL);
        if (count <= 0) break;
        sent += static_cast<size_t>(count);
      }
      // As a policy change does: from an event of the turn in which more of the transfer is already posted.
      if (sent > 8u << 20) {
        aborted = true;
        destroy ? joined.relay.reset() : joined.relay->abort();
      }
      joined.reactor.run_once(milliseconds(0));
      joined.at_server.take(joined.server);
    }
    CHECK(aborted);
    turns(joined.reactor, 5);
    CHECK(joined.done == 0);
  }
}

TEST_CASE("work that a relay posted before its abort finds no sockets") {
  Joined joined;
  auto text = pattern(3 << 20);
  int large = 8 << 20;
  ::setsockopt(joined.relay->client.fd(), SOL_SOCKET, SO_RCVBUF, &large, sizeof large);
  ::setsockopt(joined.client.get(), SOL_SOCKET, SO_SNDBUF, &large, sizeof large);
  ::setsockopt(joined.relay->server.fd(), SOL_SOCKET, SO_SNDBUF, &large, sizeof large);
  ::send(joined.client.get(), text.data(), text.size(), MSG_NOSIGNAL);
  turns(joined.reactor, 2);
  joined.relay->start();  // moves a turn's share and posts the rest, if the buffers held that much
  joined.relay->abort();
  turns(joined.reactor, 3);
  CHECK(joined.done == 0);
}

TEST_CASE("the owner may destroy a relay in the call that tells its end") {
  Joined joined;
  joined.die = true;
  joined.relay->start();
  send_all(joined.client, "bye");
  joined.client.reset();
  turn_until(joined.reactor, [&] { return joined.at_server.take(joined.server), joined.at_server.ended; });
  joined.server.reset();
  turn_until(joined.reactor, [&] { return joined.done == 1; });
  CHECK(!joined.relay);
}

namespace {

// Two halves of an HBONE connection with a TunnelRelay on each: application ⇄ relay ⇄ tunnel ⇄ relay ⇄
// application.
struct Half final : http::HboneOwner, RelayOwner {
  explicit Half(telemetry::Recorder& recorder, telemetry::Direction direction)
      : record(recorder, direction) {}
  ~Half() { record.complete(); }
  void on_hbone_request(http::HboneConnection& of, int32_t id, const http::HeaderBlock&, bool) override {
    relay->attach(of);
    of.session().accept(*relay, id);
    if (on_request) on_request();
  }
  void on_hbone_handshake(http::HboneConnection&, const Error&, Monotonic::duration) override {}
  void on_hbone_draining(http::HboneConnection&) override {}
  void on_hbone_closed(http::HboneConnection&, const Error&) override { ++closed; }
  void on_relay_done(const Error& error) override { ++done, why = error.reason; }
  void on_tunnel_accepted(const http::HeaderBlock&) override { ++accepted; }
  void on_tunnel_refused(const Error& error, bool was_processed) override {
    ++refused, why = error.reason, processed = was_processed;
  }
  void on_relay_connected(int error) override { connected = error; }

  telemetry::Record record;
  std::unique_ptr<http::HboneConnection> connection;
  std::unique_ptr<TunnelRelay> relay;
  std::function<void()> on_request;
  int done = 0, accepted = 0, refused = 0, closed = 0, connected = -1;
  bool processed = true;
  Reason why = Reason::INTERNAL;
};

struct Tunnelled : Base {
  explicit Tunnelled(int server_buffer = 0) {
    Listening listening;
    auto ssl = pair.client->connect(pair.client_credential, pair.accepted, "");
    Fd socket = socket_v4();
    sockaddr_storage native{};
    ::connect(socket.get(), reinterpret_cast<sockaddr*>(&native), listening.addr.to_native(native, AF_INET));
    near.connection =
        std::make_unique<http::HboneConnection>(http::H2Session::Role::client, reactor, buffers,
                                                std::move(socket), std::move(*ssl), near, limits, times);
    far.connection = std::make_unique<http::HboneConnection>(
        http::H2Session::Role::server, reactor, buffers, listening.accept(),
        *pair.server->accept(pair.server_credential), far, limits, times);
    REQUIRE(near.connection->start());
    REQUIRE(far.connection->start());
    near.relay = std::make_unique<TunnelRelay>(TunnelRelay::Role::client, reactor, near.record, near);
    far.relay = std::make_unique<TunnelRelay>(TunnelRelay::Role::server, reactor, far.record, far);
    far.on_request = [this] {
      if (answers) answer();
    };
    auto [near_client, far_client] = tcp_pair();
    auto [near_server, far_server] = tcp_pair(server_buffer, server_buffer);
    REQUIRE(near.relay->tcp.adopt(std::move(near_client)));
    server_socket = std::move(near_server);
    client = std::move(far_client);
    server = std::move(far_server);
  }
  ~Tunnelled() {
    near.relay.reset();
    far.relay.reset();
    near.connection.reset();
    far.connection.reset();
  }
  void open() {
    near.relay->attach(*near.connection);
    http::HeaderField fields[] = {{":method", "CONNECT"}, {":authority", "127.0.0.1:80"}};
    REQUIRE(near.connection->session().open(*near.relay, fields));
    near.connection->schedule_flush();
  }
  void answer() {
    if (!far.relay->tcp.is_open()) REQUIRE(far.relay->tcp.adopt(std::move(server_socket)));
    http::HeaderField ok[] = {{":status", "200"}};
    far.connection->session().respond(*far.relay, ok);
    far.connection->schedule_flush();
    far.relay->start();
  }
  template <class Done>
  void until(Done condition) {
    turn_until(reactor, [&] {
      if (client) at_client.take(client);
      if (server && server_reads) at_server.take(server);
      return condition();
    });
  }
  Pair pair;
  http::H2Limits limits;
  http::HboneTimes times;
  Half near{recorder, telemetry::Direction::outbound}, far{recorder, telemetry::Direction::inbound};
  Fd server_socket, client, server;
  Received at_client, at_server;
  bool answers = true, server_reads = true;
};

}  // namespace

TEST_CASE("a tunnelled connection carries bytes and half closes both ways, and both relays end well") {
  Tunnelled tunnel;
  tunnel.open();
  auto question = pattern(300'000), answer = pattern(1 << 20, 5);
  send_all(tunnel.client, question);
  ::shutdown(tunnel.client.get(), SHUT_WR);
  tunnel.until([&] { return tunnel.at_server.ended; });
  CHECK(tunnel.at_server.text == question);
  CHECK((tunnel.near.done == 0 && tunnel.far.done == 0));
  size_t sent = 0;
  tunnel.until([&] {
    ssize_t count = ::send(tunnel.server.get(), answer.data() + sent, answer.size() - sent, MSG_NOSIGNAL);
    if (count > 0) sent += static_cast<size_t>(count);
    if (sent == answer.size()) ::shutdown(tunnel.server.get(), SHUT_WR);
    return tunnel.at_client.ended;
  });
  CHECK(tunnel.at_client.text == answer);
  tunnel.until([&] { return tunnel.near.done == 1 && tunnel.far.done == 1; });
  CHECK((tunnel.near.why == Reason::NONE && tunnel.far.why == Reason::NONE));
  CHECK(tunnel.near.accepted == 1);
  CHECK(tunnel.near.record.from_client() == question.size());
  CHECK(tunnel.far.record.from_server() == answer.size());
}

TEST_CASE("a reset of either application reaches the other as a reset") {
  for (bool by_client : {true, false}) {
    CAPTURE(by_client);
    Tunnelled tunnel;
    tunnel.open();
    send_all(tunnel.client, "x");
    send_all(tunnel.server, "y");
    tunnel.until([&] { return tunnel.at_server.text == "x" && tunnel.at_client.text == "y"; });
    io::close_with_reset(by_client ? tunnel.client : tunnel.server);
    auto& other = by_client ? tunnel.at_server : tunnel.at_client;
    tunnel.until([&] { return other.reset || other.ended; });
    CHECK(other.reset);
    tunnel.until([&] { return tunnel.near.done == 1 && tunnel.far.done == 1; });
    CHECK((by_client ? tunnel.near : tunnel.far).why == Reason::PEER_RESET);
    CHECK((by_client ? tunnel.far : tunnel.near).why == Reason::STREAM_RESET);
  }
}

TEST_CASE("a tunnel that is lost resets the applications at both ends") {
  Tunnelled tunnel;
  tunnel.open();
  send_all(tunnel.client, "x");
  tunnel.until([&] { return tunnel.at_server.text == "x"; });
  tunnel.near.connection->close({Reason::PING_TIMEOUT, "lost"});
  tunnel.until([&] { return tunnel.at_client.reset && tunnel.at_server.reset; });
  CHECK(tunnel.near.why == Reason::PING_TIMEOUT);
  CHECK(tunnel.far.why == Reason::TUNNEL_LOST);
  CHECK((tunnel.near.done == 1 && tunnel.far.done == 1));
}

TEST_CASE("bytes and the end that a client sends before the server's application is there are not lost") {
  Tunnelled tunnel;
  tunnel.answers = false;
  tunnel.near.relay->allow_early_data();
  send_all(tunnel.client, "early");
  ::shutdown(tunnel.client.get(), SHUT_WR);
  tunnel.open();
  tunnel.until([&] { return tunnel.far.record.from_client() == 5; });
  turns(tunnel.reactor, 5);
  CHECK(tunnel.far.done == 0);
  // Only now there is a socket, and it still has to connect.
  Listening application;
  int result = tunnel.far.relay->tcp.connect(socket_v4(), application.addr, AF_INET);
  CHECK((result == 0 || result == EINPROGRESS));
  tunnel.server = application.accept();
  tunnel.answer();
  tunnel.until([&] { return tunnel.at_server.ended; });
  CHECK(tunnel.at_server.text == "early");
}

TEST_CASE("an application that reads slowly holds a bounded amount at its node and gets every byte") {
  Tunnelled tunnel(8192);
  tunnel.open();
  tunnel.server_reads = false;
  auto text = pattern(16 << 20);
  size_t sent = 0;
  auto push = [&] {
    while (sent < text.size()) {
      ssize_t count = ::send(tunnel.client.get(), text.data() + sent, text.size() - sent, MSG_NOSIGNAL);
      if (count <= 0) return;
      sent += static_cast<size_t>(count);
    }
    ::shutdown(tunnel.client.get(), SHUT_WR);
  };
  for (int i = 0; i < 200; ++i) push(), tunnel.reactor.run_once(milliseconds(0));
  CHECK(tunnel.far.relay->tcp.kept() <= 256 * 1024);
  size_t most = 0;
  tunnel.server_reads = true;
  tunnel.until([&] {
    push();
    most = std::max(most, tunnel.far.relay->tcp.held());
    return tunnel.at_server.ended;
  });
  CHECK(tunnel.at_server.text == text);
  CHECK(most <= 1 << 20);
}

TEST_CASE("what an application has not read when stream and tunnel end still reaches it, and then the end") {
  Tunnelled tunnel(8192);
  tunnel.open();
  tunnel.server_reads = false;
  auto text = pattern(200'000);
  send_all(tunnel.client, text);
  ::shutdown(tunnel.client.get(), SHUT_WR);
  ::shutdown(tunnel.server.get(), SHUT_WR);
  tunnel.until([&] { return tunnel.near.done == 1; });
  CHECK(tunnel.near.why == Reason::NONE);
  tunnel.until([&] { return tunnel.far.connection->session().open_streams() == 0; });
  REQUIRE(tunnel.far.relay->tcp.kept() > 0);
  tunnel.near.connection->close({Reason::POD_GONE, "gone"});
  tunnel.until([&] { return tunnel.far.closed == 1; });
  CHECK(tunnel.far.done == 0);
  tunnel.server_reads = true;
  tunnel.until([&] { return tunnel.at_server.ended || tunnel.at_server.reset; });
  CHECK(tunnel.at_server.text == text);
  CHECK(tunnel.at_server.ended);
  CHECK((tunnel.far.done == 1 && tunnel.far.why == Reason::NONE));
}

TEST_CASE("a refused CONNECT is told with what the peer knows") {
  Tunnelled tunnel;
  tunnel.answers = false;
  SUBCASE("by its status") {
    tunnel.far.on_request = [&] {
      tunnel.far.connection->session().refuse(*tunnel.far.relay, "401");
      tunnel.far.connection->schedule_flush();
    };
    tunnel.open();
    tunnel.until([&] { return tunnel.near.refused == 1; });
    CHECK(tunnel.near.why == Reason::TUNNEL_REFUSED);
    CHECK(tunnel.near.processed);
  }
  SUBCASE("by a reset that says nobody looked at it") {
    tunnel.far.on_request = [&] {
      tunnel.far.connection->session().abandon(*tunnel.far.relay, http::H2Error::refused_stream);
      tunnel.far.connection->schedule_flush();
    };
    tunnel.open();
    tunnel.until([&] { return tunnel.near.refused == 1; });
    CHECK(tunnel.near.why == Reason::STREAM_RESET);
    CHECK(!tunnel.near.processed);
  }
}

TEST_CASE("an aborted tunnel relay resets both sides and is not heard of again") {
  Tunnelled tunnel;
  tunnel.open();
  send_all(tunnel.client, "x");
  tunnel.until([&] { return tunnel.at_server.text == "x"; });
  tunnel.near.relay->abort(http::H2Error::cancel);
  tunnel.until([&] { return tunnel.at_client.reset && tunnel.at_server.reset; });
  turns(tunnel.reactor, 5);
  CHECK(tunnel.near.done == 0);
  CHECK(tunnel.far.done == 1);
}

TEST_CASE("a relay may be destroyed with its stream open") {
  Tunnelled tunnel;
  tunnel.open();
  send_all(tunnel.client, "x");
  tunnel.until([&] { return tunnel.at_server.text == "x"; });
  tunnel.far.relay.reset();
  tunnel.until([&] { return tunnel.near.done == 1; });
  CHECK(tunnel.near.why == Reason::STREAM_RESET);
}

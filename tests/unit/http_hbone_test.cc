// HBONE connections over loopback TCP with real certificates: both roles, drain, PING, idle, and how they
// end.
#include <doctest/doctest.h>

#include <openssl/ssl.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "http/hbone.h"
#include "io_pairs.h"
#include "tls_pairs.h"

using namespace nodemesh;
using namespace nodemesh::http;
using namespace nodemesh::test;

namespace {

struct EchoStream final : H2Stream {
  void on_headers(const HeaderBlock& headers, bool) override { status = headers.status; }
  void on_data(std::span<const iovec> pieces, size_t bytes) override {
    for (const auto& piece : pieces) in.append(static_cast<const char*>(piece.iov_base), piece.iov_len);
    if (echo) out.append(in, in.size() - bytes);
    if (consumes) connection->session().consume(*this, bytes);
    if (echo) connection->session().resume(*this);
    connection->schedule_flush();
  }
  void on_end() override { ended = true; }
  Pull pull(std::span<uint8_t> buffer) override {
    size_t count = std::min(buffer.size(), out.size());
    std::copy_n(out.begin(), count, buffer.begin());
    out.erase(0, count);
    return {count, out.empty() && end_after};
  }
  void on_close(H2Error with, bool was_processed) override {
    ++closed, error = with, processed = was_processed;
  }

  HboneConnection* connection = nullptr;
  std::string in, out;
  int status = 0, closed = 0;
  bool echo = false, consumes = true, ended = false, end_after = false, processed = true;
  H2Error error = H2Error::none;
};

struct Peer final : HboneOwner {
  void on_hbone_request(HboneConnection& of, int32_t id, const HeaderBlock&, bool) override {
    auto& stream = streams.emplace_back(std::make_unique<EchoStream>());
    stream->connection = &of;
    stream->echo = true;
    of.session().accept(*stream, id);
    HeaderField ok[] = {{":status", "200"}};
    of.session().respond(*stream, ok);
    of.schedule_flush();
  }
  void on_hbone_handshake(HboneConnection&, const Error& error, Monotonic::duration) override {
    ++handshakes, handshake = error.reason;
  }
  void on_hbone_draining(HboneConnection&) override { ++draining; }
  void on_hbone_closed(HboneConnection&, const Error& error) override { ++closed, why = error.reason; }
  EchoStream& open() {
    auto& stream = *streams.emplace_back(std::make_unique<EchoStream>());
    stream.connection = connection.get();
    HeaderField fields[] = {{":method", "CONNECT"}, {":authority", "127.0.0.1:80"}};
    REQUIRE(connection->session().open(stream, fields));
    connection->schedule_flush();
    return stream;
  }

  std::unique_ptr<HboneConnection> connection;
  SSL* ssl = nullptr;  // of `connection`
  std::vector<std::unique_ptr<EchoStream>> streams;
  int handshakes = 0, draining = 0, closed = 0;
  Reason handshake = Reason::INTERNAL, why = Reason::INTERNAL;
};

struct Tunnel {
  bool ours = true;  // else the client speaks h2 only
  explicit Tunnel(HboneTimes client_times = {}, HboneTimes server_times = {})
      : times{client_times, server_times} {
    listening.emplace();
  }
  ~Tunnel() {
    client.connection.reset();
    server.connection.reset();
  }
  void dial() {
    Fd socket = socket_v4();
    sockaddr_storage native{};
    ::connect(socket.get(), reinterpret_cast<sockaddr*>(&native), listening->addr.to_native(native, AF_INET));
    auto ssl = pair.client->connect(pair.client_credential, pair.accepted, "");
    client.ssl = ssl->get();
    if (!ours) SSL_set_alpn_protos(client.ssl, reinterpret_cast<const unsigned char*>("\x02h2"), 3);
    client.connection =
        std::make_unique<HboneConnection>(H2Session::Role::client, reactor, buffers, std::move(socket),
                                          std::move(*ssl), client, client_limits, times[0]);
    REQUIRE(client.connection->start());
  }
  void answer() {
    auto ssl = pair.server->accept(pair.server_credential);
    server.connection =
        std::make_unique<HboneConnection>(H2Session::Role::server, far, far_buffers, listening->accept(),
                                          std::move(*ssl), server, limits, times[1]);
    REQUIRE(server.connection->start());
  }
  void connect() {
    dial();
    answer();
    until([&] { return client.handshakes == 1 && server.handshakes == 1; });
  }
  template <class Done>
  void until(Done done) {
    turn_until(reactor, [&] {
      if (!asleep) far.run_once(milliseconds(0));
      return done();
    });
  }

  io::Reactor reactor, far;  // the server's runs in turn with the client's, unless it sleeps
  io::Buffers buffers, far_buffers;
  bool asleep = false;
  Pair pair;
  H2Limits limits, client_limits;
  HboneTimes times[2];
  std::optional<Listening> listening;
  Peer client, server;
};

}  // namespace

TEST_CASE("a tunnel knows its peer and carries a stream both ways and to its end") {
  Tunnel tunnel;
  tunnel.connect();
  CHECK(tunnel.client.handshake == Reason::NONE);
  CHECK(tunnel.client.connection->ready());
  CHECK(std::string(tunnel.client.connection->tls_version()) == "TLSv1.3");
  CHECK(tunnel.client.connection->peer()->identity->uri == spiffe("default", "server"));
  CHECK(tunnel.server.connection->peer()->identity->uri == spiffe("default", "client"));
  auto& stream = tunnel.client.open();
  auto text = pattern(5 << 20);
  stream.out = text;
  stream.end_after = true;
  tunnel.until([&] { return stream.in.size() == text.size(); });
  CHECK(stream.in == text);
  CHECK(stream.status == 200);
  tunnel.until([&] { return tunnel.server.streams[0]->ended; });
  tunnel.server.streams[0]->end_after = true;
  tunnel.server.connection->session().resume(*tunnel.server.streams[0]);
  tunnel.server.connection->schedule_flush();
  tunnel.until([&] { return stream.closed == 1; });
  CHECK(stream.error == H2Error::none);
  CHECK((tunnel.client.closed == 0 && tunnel.server.closed == 0));
}

TEST_CASE("a stream that stalls holds 256 KiB of an agent and 64 KiB of a stranger, at either end") {
  for (bool ours : {true, false}) {
    CAPTURE(ours);
    Tunnel tunnel;
    tunnel.ours = ours;
    tunnel.dial();
    auto& stream = tunnel.client.open();  // before either knows the other
    stream.consumes = false;
    tunnel.answer();
    tunnel.until([&] { return stream.status == 200; });
    auto& at_server = *tunnel.server.streams[0];
    at_server.consumes = at_server.echo = false;
    stream.out = pattern(1 << 20);
    at_server.out = pattern(1 << 20);
    for (auto* each : {&stream, &at_server}) {
      each->connection->session().resume(*each);
      each->connection->schedule_flush();
    }
    size_t window = ours ? 256 * 1024 : 64 * 1024;
    tunnel.until([&] { return stream.in.size() >= window && at_server.in.size() >= window; });
    for (int i = 0; i < 10; ++i) tunnel.far.run_once(milliseconds(0)), turns(tunnel.reactor, 1);
    CHECK(stream.in.size() == window);
    CHECK(at_server.in.size() == window);
    CHECK(tunnel.client.connection->session().peer_max_streams() == (ours ? 200 : 100));
  }
}

TEST_CASE("streams may be opened while the connection is still being made") {
  Tunnel tunnel;
  tunnel.dial();
  auto& stream = tunnel.client.open();
  stream.out = "early";
  tunnel.answer();
  tunnel.until([&] { return stream.in == "early"; });
}

TEST_CASE("two tunnels of one worker keep their records apart while peers renew their keys") {
  Tunnel one;
  one.connect();
  // The second tunnel shares reactor and buffers with the first, as connections of one worker do.
  auto& echo = one.client.open();
  one.until([&] { return echo.status == 200; });
  Peer second_client, second_server;
  Fd socket = socket_v4();
  sockaddr_storage native{};
  ::connect(socket.get(), reinterpret_cast<sockaddr*>(&native),
            one.listening->addr.to_native(native, AF_INET));
  auto ssl = *one.pair.client->connect(one.pair.client_credential, one.pair.accepted, "");
  second_client.ssl = ssl.get();
  second_client.connection =
      std::make_unique<HboneConnection>(H2Session::Role::client, one.reactor, one.buffers, std::move(socket),
                                        std::move(ssl), second_client, one.limits, one.times[0]);
  REQUIRE(second_client.connection->start());
  second_server.connection = std::make_unique<HboneConnection>(
      H2Session::Role::server, one.far, one.far_buffers, one.listening->accept(),
      *one.pair.server->accept(one.pair.server_credential), second_server, one.limits, one.times[1]);
  REQUIRE(second_server.connection->start());
  one.until([&] { return second_client.handshakes == 1 && second_server.handshakes == 1; });
  auto& other = second_client.open();
  one.until([&] { return other.status == 200; });
  // Only a peer of another make asks for new keys; its request is sealed here with a connection that we hold.
  for (int round = 0; round < 20; ++round) {
    SSL_key_update(round % 2 == 0 ? one.client.ssl : second_client.ssl, SSL_KEY_UPDATE_REQUESTED);
    echo.out += pattern(3000, static_cast<unsigned>(round));
    other.out += pattern(5000, static_cast<unsigned>(round));
    size_t first = echo.in.size() + 3000, second = other.in.size() + 5000;
    for (auto* stream : {&echo, &other}) {
      stream->connection->session().resume(*stream);
      stream->connection->schedule_flush();
    }
    one.until([&] { return echo.in.size() == first && other.in.size() == second; });
  }
  CHECK((one.client.closed == 0 && one.server.closed == 0 && second_client.closed == 0 &&
         second_server.closed == 0));
  second_client.connection.reset();
  second_server.connection.reset();
}

TEST_CASE("a server that nobody answers at is a refused connect, told once with its streams") {
  Tunnel tunnel;
  tunnel.dial();
  auto& stream = tunnel.client.open();
  tunnel.listening.reset();  // resets what waits in its backlog
  tunnel.until([&] { return tunnel.client.closed == 1; });
  CHECK(stream.closed == 1);
  CHECK(!stream.processed);
  CHECK(tunnel.client.why != Reason::NONE);
}

TEST_CASE("a handshake that never ends is ended by its time, one that is wrong by its reason") {
  {
    Tunnel tunnel({.handshake = milliseconds(50)});
    tunnel.dial();
    Fd silent = tunnel.listening->accept();
    tunnel.until([&] { return tunnel.client.closed == 1; });
    CHECK(tunnel.client.why == Reason::HANDSHAKE_TIMEOUT);
    CHECK(tunnel.client.handshakes == 1);
  }
  {
    Tunnel tunnel;
    tunnel.pair.accepted =
        std::make_shared<const tls::AcceptedPeers>(tls::AcceptedPeers{{"default", "another"}});
    tunnel.dial();
    auto& stream = tunnel.client.open();
    tunnel.answer();
    tunnel.until([&] { return tunnel.client.closed == 1 && tunnel.server.closed == 1; });
    CHECK(tunnel.client.why == Reason::PEER_ID_MISMATCH);
    CHECK(tunnel.client.handshakes == 1);
    CHECK((stream.closed == 1 && !stream.processed));
  }
}

TEST_CASE("a peer that breaks HTTP/2 is told by GOAWAY and the reason is kept") {
  Tunnel tunnel;
  tunnel.client_limits.control_frames = 1'000'000;  // it does not mind the answers
  tunnel.connect();
  auto& stream = tunnel.client.open();
  tunnel.until([&] { return stream.status == 200; });
  for (int i = 0; i < 3000; ++i) tunnel.client.connection->session().ping(H2Ping::alive);
  tunnel.client.connection->schedule_flush();
  tunnel.until([&] { return tunnel.server.closed == 1; });
  CHECK(tunnel.server.why == Reason::H2_FLOOD);
  CHECK(tunnel.server.streams[0]->closed == 1);
  tunnel.until([&] { return tunnel.client.closed == 1; });
  CHECK(tunnel.client.draining == 1);  // the GOAWAY arrived before the end
  CHECK(stream.closed == 1);
}

TEST_CASE("a server that drains lets open streams end, refuses later ones untouched, and closes") {
  Tunnel tunnel;
  tunnel.connect();
  auto& stream = tunnel.client.open();
  tunnel.until([&] { return stream.status == 200; });
  tunnel.server.connection->drain();
  tunnel.until([&] { return tunnel.client.draining == 1; });
  auto& late = tunnel.client.open();
  tunnel.until([&] { return late.closed == 1; });
  CHECK(!late.processed);
  stream.out = "still served";
  tunnel.client.connection->session().resume(stream);
  tunnel.client.connection->schedule_flush();
  tunnel.until([&] { return stream.in == "still served"; });
  CHECK(tunnel.server.closed == 0);
  stream.end_after = tunnel.server.streams[0]->end_after = true;
  tunnel.client.connection->session().resume(stream);
  tunnel.client.connection->schedule_flush();
  tunnel.until([&] { return tunnel.server.streams[0]->ended; });
  tunnel.server.connection->session().resume(*tunnel.server.streams[0]);
  tunnel.server.connection->schedule_flush();
  tunnel.until([&] { return tunnel.server.closed == 1 && tunnel.client.closed == 1; });
  CHECK(tunnel.server.why == Reason::NONE);
  CHECK(stream.error == H2Error::none);
}

TEST_CASE("a draining server takes streams until the answer to its own PING, not to an earlier one") {
  Tunnel tunnel({}, {.ping_interval = milliseconds(5)});
  tunnel.connect();
  auto& first = tunnel.client.open();
  tunnel.until([&] { return first.status == 200; });
  // The server's PING is on its way when the drain begins, and its answer comes together with a stream.
  pollfd waiting{tunnel.client.connection->fd(), POLLIN, 0};
  auto end = deadline();
  while (::poll(&waiting, 1, 0) == 0 && Monotonic::now() < end) tunnel.far.run_once(milliseconds(1));
  tunnel.server.connection->drain();
  auto& crossing = tunnel.client.open();
  turns(tunnel.reactor, 3);
  tunnel.until([&] { return crossing.status == 200 || crossing.closed > 0; });
  CHECK(crossing.status == 200);
  CHECK(crossing.closed == 0);
}

TEST_CASE("a client without streams leaves after its idle time, a busy one stays") {
  HboneTimes quick{
      .ping_interval = milliseconds(10), .ping_timeout = milliseconds(5000), .idle = milliseconds(50)};
  Tunnel tunnel(quick);
  tunnel.connect();
  auto& stream = tunnel.client.open();
  auto until = Monotonic::now() + milliseconds(200);
  tunnel.until([&] { return Monotonic::now() >= until; });
  CHECK(tunnel.client.closed == 0);
  tunnel.client.connection->session().abandon(stream, H2Error::cancel);
  tunnel.until([&] { return tunnel.client.closed == 1 && tunnel.server.closed == 1; });
  CHECK(tunnel.client.why == Reason::NONE);
}

TEST_CASE("a peer that answers no PING is given up, streams told") {
  HboneTimes quick{.ping_interval = milliseconds(20), .ping_timeout = milliseconds(60)};
  Tunnel tunnel(quick);
  tunnel.connect();
  auto& stream = tunnel.client.open();
  tunnel.until([&] { return stream.status == 200; });
  tunnel.asleep = true;
  tunnel.until([&] { return tunnel.client.closed == 1; });
  CHECK(tunnel.client.why == Reason::PING_TIMEOUT);
  CHECK(stream.closed == 1);
}

TEST_CASE("close ends streams and connection once, whatever is asked of it afterwards") {
  Tunnel tunnel;
  tunnel.connect();
  auto& stream = tunnel.client.open();
  tunnel.until([&] { return stream.status == 200; });
  tunnel.client.connection->close({Reason::POD_GONE, "gone"});
  tunnel.client.connection->close({Reason::INTERNAL, "again"});
  tunnel.client.connection->drain();
  tunnel.until([&] { return tunnel.client.closed == 1 && tunnel.server.closed == 1; });
  tunnel.client.connection->schedule_flush();
  turns(tunnel.reactor, 3);
  CHECK(tunnel.client.closed == 1);
  CHECK(tunnel.client.why == Reason::POD_GONE);
  CHECK(stream.closed == 1);
}

TEST_CASE("a peer whose roots are no longer trusted is ended") {
  Tunnel tunnel;
  tunnel.connect();
  TestCa other("another root");
  tunnel.pair.client_verifier.set_trust(other.trust());
  tunnel.client.connection->verify_again(tunnel.pair.client_verifier, tls::PeerRole::server);
  tunnel.until([&] { return tunnel.client.closed == 1; });
  CHECK(tunnel.client.why != Reason::NONE);
}

// HTTP/2 sessions that talk to each other in memory, and to peers that break the rules.
#include <doctest/doctest.h>

#include <deque>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "http/h2_session.h"
#include "io_pairs.h"

using namespace nodemesh;
using namespace nodemesh::http;
using nodemesh::test::pattern;

namespace {

struct Stream final : H2Stream {
  void on_headers(const HeaderBlock& headers, bool) override { status = headers.status; }
  void on_data(std::span<const iovec> pieces, size_t bytes) override {
    size_t sum = 0;
    for (const auto& piece : pieces) {
      in.append(static_cast<const char*>(piece.iov_base), piece.iov_len);
      sum += piece.iov_len;
    }
    CHECK(sum == bytes);
    if (session != nullptr && consumes) session->consume(*this, bytes);
  }
  void on_end() override { ended = true; }
  Pull pull(std::span<uint8_t> buffer) override {
    if (break_source) return {.reset = true};
    size_t count = std::min(buffer.size(), out.size());
    std::copy_n(out.begin(), count, buffer.begin());
    out.erase(0, count);
    return {count, out.empty() && end_after};
  }
  void on_close(H2Error with, bool was_processed) override {
    ++closed;
    error = with;
    processed = was_processed;
  }

  H2Session* session = nullptr;
  std::string in, out;
  int status = 0, closed = 0;
  bool ended = false, end_after = false, consumes = true, break_source = false, processed = true;
  H2Error error = H2Error::none;
};

// One side: a session, and as a server a stream for every request.
struct Side final : H2SessionOwner {
  explicit Side(H2Session::Role role, H2Limits limits = {}) : session(role, *this, limits) {}
  void on_request(int32_t id, const HeaderBlock& headers, bool) override {
    methods.push_back(headers.method);
    authorities.push_back(headers.authority);
    fields = headers.used;
    if (!accept) return;
    auto& stream = requests[id] = std::make_unique<Stream>();
    stream->session = &session;
    stream->consumes = consume;
    session.accept(*stream, id);
    if (!answer) return;
    HeaderField ok[] = {{":status", "200"}};
    session.respond(*stream, ok, false);
  }
  void on_request_refused(const Error& error) override { refused.push_back(error.reason); }
  void on_goaway() override { ++goaways; }
  void on_ping_ack() override { ++ping_acks; }

  bool accept = true, answer = true, consume = true;
  int goaways = 0, ping_acks = 0;
  size_t fields = 0;
  std::vector<std::string> methods, authorities;
  std::vector<Reason> refused;
  std::map<int32_t, std::unique_ptr<Stream>> requests;
  H2Session session;
};

struct Wire {
  explicit Wire(H2Limits at_server = {}, H2Limits at_client = {})
      : client(H2Session::Role::client, at_client), server(H2Session::Role::server, at_server) {}
  ~Wire() {
    client.session.close_all(true);
    server.session.close_all(true);
  }
  bool move(Side& from, Side& to) {
    size_t count = from.session.drain(buffer);
    CHECK(count <= buffer.size());
    if (count > 0) to.session.feed({buffer.data(), count});
    return count > 0;
  }
  void settle() {
    for (bool moved = true; moved;) {
      moved = move(client, server);
      moved = move(server, client) || moved;
    }
  }
  Stream& open(std::string_view authority = "10.0.0.1:80") {
    auto& stream = *streams.emplace_back(std::make_unique<Stream>());
    stream.session = &client.session;
    HeaderField fields[] = {{":method", "CONNECT"}, {":authority", authority}};
    REQUIRE(client.session.open(stream, fields));
    return stream;
  }
  Stream& at_server(const Stream& stream) { return *server.requests.at(stream.stream_id()); }

  std::vector<uint8_t> buffer = std::vector<uint8_t>(256 * 1024);
  std::deque<std::unique_ptr<Stream>> streams;
  Side client, server;
};

std::string frame(uint8_t type, uint8_t flags, uint32_t stream, std::string_view payload) {
  std::string out;
  for (int shift : {16, 8, 0}) out += static_cast<char>(payload.size() >> shift);
  out += static_cast<char>(type);
  out += static_cast<char>(flags);
  for (int shift : {24, 16, 8, 0}) out += static_cast<char>(stream >> shift);
  return out.append(payload);
}

std::string literal(std::string_view name, std::string_view value) {
  REQUIRE(name.size() < 127);
  auto number = [](size_t size) {
    std::string out;
    if (size < 127) return out += static_cast<char>(size);
    out += 127;
    for (size -= 127; size >= 128; size /= 128) out += static_cast<char>(size % 128 | 128);
    return out += static_cast<char>(size);
  };
  std::string out(1, 0);
  return out.append(number(name.size())).append(name).append(number(value.size())).append(value);
}

std::string connect_block() {
  return literal(":method", "CONNECT") + literal(":authority", "10.0.0.1:80");
}

// A server with a client that writes its frames by hand.
struct Hostile {
  explicit Hostile(H2Limits limits = {}) : server(H2Session::Role::server, limits) {
    REQUIRE(feed("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, "")));
  }
  ~Hostile() { server.session.close_all(true); }
  bool feed(std::string_view bytes) {
    return server.session.feed({reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()});
  }
  // Feeds the piece until the session refuses; how often that took.
  int until_refused(const std::function<std::string(int)>& piece, int most) {
    for (int i = 0; i < most; ++i) {
      if (!feed(piece(i))) return i;
      drain();
    }
    return most;
  }
  std::string drain() {
    std::vector<uint8_t> buffer(256 * 1024);
    return {reinterpret_cast<char*>(buffer.data()), server.session.drain(buffer)};
  }
  void open(uint32_t id) { REQUIRE(feed(frame(1, 4, id, connect_block()))); }
  Side server;
};

}  // namespace

TEST_CASE("a CONNECT is answered, carries bytes both ways and ends half by half") {
  Wire wire;
  auto& stream = wire.open("10.0.0.1:8080");
  auto up = pattern(3 << 20), down = pattern(2 << 20, 9);
  stream.out = up;
  stream.end_after = true;
  wire.settle();
  CHECK(wire.server.methods == std::vector<std::string>{"CONNECT"});
  CHECK(wire.server.authorities == std::vector<std::string>{"10.0.0.1:8080"});
  CHECK(stream.status == 200);
  auto& at_server = wire.at_server(stream);
  CHECK(at_server.in == up);
  CHECK(at_server.ended);
  CHECK(at_server.closed == 0);
  at_server.out = down;
  at_server.end_after = true;
  wire.server.session.resume(at_server);
  wire.settle();
  CHECK(stream.in == down);
  CHECK(stream.ended);
  CHECK((stream.closed == 1 && at_server.closed == 1));
  CHECK((stream.error == H2Error::none && at_server.error == H2Error::none));
  CHECK((wire.client.session.open_streams() == 0 && wire.server.session.open_streams() == 0));
}

TEST_CASE("a stream that nobody reads holds 256 KiB and stops no other stream") {
  Wire wire;
  wire.server.consume = false;
  auto& stalled = wire.open();
  wire.settle();
  wire.server.consume = true;
  auto& flowing = wire.open();
  stalled.out = pattern(8 << 20);
  wire.client.session.resume(stalled);
  flowing.out = pattern(16 << 20, 3);
  flowing.end_after = true;
  wire.settle();
  CHECK(wire.at_server(stalled).in.size() == 256 * 1024);
  CHECK(wire.at_server(flowing).in.size() == 16u << 20);
}

TEST_CASE("what the owner gives back lets exactly that much come again") {
  Wire wire;
  wire.server.consume = false;
  auto& stream = wire.open();
  stream.out = pattern(4 << 20);
  wire.settle();
  auto& at_server = wire.at_server(stream);
  REQUIRE(at_server.in.size() == 256 * 1024);
  for (size_t given = 0; given < 1 << 20; given += 200 * 1024) {
    size_t before = at_server.in.size();
    wire.server.session.consume(at_server, 200 * 1024);
    wire.settle();
    CHECK(at_server.in.size() == before + 200 * 1024);
  }
}

TEST_CASE("a thousand streams in turn leak no window and no count") {
  Wire wire;
  for (int i = 0; i < 1000; ++i) {
    auto& stream = wire.open();
    stream.out = pattern(40 * 1024);
    switch (i % 4) {
      case 0:
        stream.end_after = true;
        break;
      case 1:
        wire.client.session.reset(stream, H2Error::cancel);
        break;
      case 2:
        wire.settle(), wire.server.session.reset(wire.at_server(stream), H2Error::connect_error);
        break;
      default:
        wire.settle(), wire.client.session.abandon(stream, H2Error::cancel);
    }
    wire.settle();
    if (i % 4 == 0) {
      auto& answered = wire.at_server(stream);
      answered.end_after = true;
      wire.server.session.resume(answered);
      wire.settle();
    }
    REQUIRE(wire.client.session.open_streams() == 0);
    REQUIRE(wire.server.session.open_streams() == 0);
  }
  auto& last = wire.open();
  last.out = pattern(20 << 20);
  wire.settle();
  CHECK(wire.at_server(last).in.size() == 20u << 20);
}

TEST_CASE("a reset carries its code, and a source that breaks resets the stream") {
  Wire wire;
  auto& stream = wire.open();
  wire.settle();
  wire.server.session.reset(wire.at_server(stream), H2Error::connect_error);
  wire.settle();
  CHECK(stream.closed == 1);
  CHECK(stream.error == H2Error::connect_error);
  CHECK(stream.processed);
  auto& second = wire.open();
  wire.settle();
  auto& second_at_server = wire.at_server(second);
  second.break_source = true;
  wire.client.session.resume(second);
  wire.settle();
  CHECK(second.closed == 1);
  CHECK(second_at_server.error == H2Error::connect_error);
}

TEST_CASE("an abandoned owner may die at once and hears nothing more") {
  Wire wire;
  auto& stream = wire.open();
  wire.settle();
  auto& at_server = wire.at_server(stream);
  at_server.out = pattern(1 << 20);
  wire.server.session.resume(at_server);
  wire.client.session.abandon(stream, H2Error::cancel);
  CHECK(stream.closed == 0);
  wire.streams.clear();
  wire.settle();
  CHECK(at_server.closed == 1);
  CHECK(at_server.error == H2Error::cancel);
}

TEST_CASE("an owner that abandons its stream inside each of its callbacks is not called again") {
  struct Abandons final : H2Stream {
    explicit Abandons(H2Session& of, int when) : session(of), at(when) {}
    void leave(int where) {
      CHECK(!gone);
      if (where == at) gone = true, session.abandon(*this, H2Error::cancel);
    }
    void on_headers(const HeaderBlock&, bool) override { leave(0); }
    void on_data(std::span<const iovec>, size_t) override { leave(1); }
    void on_end() override { leave(2); }
    Pull pull(std::span<uint8_t>) override {
      leave(3);
      return {};
    }
    void on_close(H2Error, bool) override { leave(4); }
    H2Session& session;
    int at;
    bool gone = false;
  };
  for (int when = 0; when < 5; ++when) {
    Wire wire;
    Abandons stream(wire.client.session, when);
    HeaderField fields[] = {{":method", "CONNECT"}, {":authority", "10.0.0.1:80"}};
    REQUIRE(wire.client.session.open(stream, fields));
    wire.settle();
    auto& other = wire.open();
    wire.settle();
    if (auto& at_server = *wire.server.requests.begin()->second; at_server.closed == 0) {
      at_server.out = "x";
      at_server.end_after = true;
      wire.server.session.resume(at_server);
    }
    wire.settle();
    other.out = "still here";
    wire.client.session.resume(other);
    wire.settle();
    CHECK(wire.at_server(other).in == "still here");
    if (!stream.gone) wire.client.session.abandon(stream, H2Error::cancel);
  }
}

TEST_CASE("close_all tells every owner once that its stream is over") {
  Wire wire;
  auto &one = wire.open(), &two = wire.open();
  wire.settle();
  wire.client.session.close_all(false);
  CHECK((one.closed == 1 && two.closed == 1));
  CHECK((!one.processed && !two.processed));
  CHECK(one.error == H2Error::internal_error);
}

TEST_CASE("streams that a GOAWAY cuts off were not processed, the others go on") {
  Wire wire;
  auto& first = wire.open();
  wire.settle();
  wire.server.session.refuse_new_streams();
  auto& late = wire.open();
  wire.settle();
  CHECK(wire.client.goaways == 1);
  CHECK(wire.client.session.going_away());
  CHECK(late.closed == 1);
  CHECK(!late.processed);
  auto& even_later = wire.open();
  wire.settle();
  CHECK(even_later.closed == 1);
  CHECK(!even_later.processed);
  first.out = "goes on";
  first.end_after = true;
  wire.client.session.resume(first);
  wire.settle();
  CHECK(wire.at_server(first).in == "goes on");
  CHECK(wire.client.session.open_streams() == 1);
}

TEST_CASE("more streams than the peer allows wait, and those cancelled meanwhile never start") {
  Wire wire({.concurrent_streams = 2});
  wire.settle();
  CHECK(wire.client.session.peer_max_streams() == 2);
  auto &one = wire.open(), &two = wire.open(), &three = wire.open(), &four = wire.open();
  wire.settle();
  CHECK((one.status == 200 && two.status == 200 && three.status == 0));
  wire.client.session.abandon(three, H2Error::cancel);
  wire.client.session.abandon(one, H2Error::cancel);
  wire.settle();
  CHECK(four.status == 200);
  CHECK(wire.server.methods.size() == 3);
  CHECK(wire.client.session.open_streams() == 2);
}

TEST_CASE("a refusal without a body is told with its status, and the client's cancel of it is no flood") {
  Wire wire;
  wire.server.accept = false;
  for (int i = 0; i < 2000; ++i) {
    auto& stream = wire.open();
    REQUIRE(wire.move(wire.client, wire.server));
    HeaderField denied[] = {{":status", "401"}};
    wire.server.session.respond(stream.stream_id(), denied);
    wire.settle();
    REQUIRE(stream.status == 401);
    wire.client.session.abandon(stream, H2Error::cancel);
    wire.settle();
    REQUIRE(wire.server.session.error().reason == Reason::NONE);
    REQUIRE(wire.server.session.open_streams() == 0);
    wire.streams.clear();
  }
}

TEST_CASE("applications that end each of their connections by a reset are no flood") {
  Wire wire;
  for (int i = 0; i < 2000; ++i) {
    auto& stream = wire.open();
    wire.settle();
    wire.client.session.abandon(stream, H2Error::connect_error);
    wire.settle();
    REQUIRE(wire.server.session.error().reason == Reason::NONE);
  }
}

TEST_CASE("streams reset before their answer are a flood beyond five hundred") {
  Hostile peer;
  int sent = peer.until_refused(
      [](int i) {
        auto id = static_cast<uint32_t>(2 * i + 1);
        return frame(1, 4, id, connect_block()) + frame(3, 0, id, std::string("\0\0\0\x08", 4));
      },
      5000);
  CHECK(sent >= 500);
  CHECK(sent < 1100);
  CHECK(peer.server.session.error().reason == Reason::H2_FLOOD);
  CHECK(peer.drain().find(std::string("\0\0\0\x0b", 4)) != std::string::npos);  // GOAWAY, ENHANCE_YOUR_CALM
}

TEST_CASE("floods of control frames are refused as such") {
  const std::pair<std::string, std::string> kFrames[] = {
      {"PING", frame(6, 0, 0, "12345678")},
      {"PING ACK", frame(6, 1, 0, "12345678")},
      {"SETTINGS", frame(4, 0, 0, std::string("\0\4\0\1\0\0", 6))},
      {"WINDOW_UPDATE", frame(8, 0, 0, std::string("\0\0\0\1", 4))},
      {"PRIORITY", frame(2, 0, 3, std::string("\0\0\0\0\1", 5))},
  };
  for (const auto& [name, bytes] : kFrames) {
    CAPTURE(name);
    Hostile peer;
    int sent = peer.until_refused([&](int) { return bytes; }, 20'000);
    CHECK(sent < 2000);
    CHECK(peer.server.session.error().reason == Reason::H2_FLOOD);
    CHECK(!peer.drain().empty());
  }
}

TEST_CASE("frames of unknown types are ignored and cost no answer") {
  Hostile peer;
  peer.drain();
  CHECK(peer.until_refused([](int) { return frame(0xfa, 0, 0, "x"); }, 5000) == 5000);
  CHECK(peer.drain().empty());
}

TEST_CASE("empty DATA frames are refused after a few, one-byte ones are carried") {
  Hostile peer;
  peer.open(1);
  int sent = peer.until_refused([](int) { return frame(0, 0, 1, ""); }, 1000);
  CHECK(sent <= 17);
  CHECK(peer.server.session.error().reason == Reason::H2_FLOOD);
  Hostile patient;
  patient.open(1);
  CHECK(patient.until_refused([](int) { return frame(0, 0, 1, "x"); }, 1000) == 1000);
  CHECK(patient.server.requests.at(1)->in.size() == 1000);
}

TEST_CASE("a connection that is quiet for days but for its PINGs is no flood") {
  Wire wire;
  auto& stream = wire.open();
  for (int i = 0; i < 20'000; ++i) {
    wire.client.session.ping();
    wire.server.session.ping();
    wire.settle();
    REQUIRE(wire.client.session.error().reason == Reason::NONE);
    REQUIRE(wire.server.session.error().reason == Reason::NONE);
  }
  CHECK(wire.client.ping_acks == 20'000);
  CHECK(stream.closed == 0);
}

TEST_CASE(
    "a header block above the limits costs its stream, is told, and leaves count and connection right") {
  for (bool many : {false, true}) {
    CAPTURE(many);
    Hostile peer;
    peer.open(1);
    std::string block = connect_block();
    for (int i = 0; i < (many ? 101 : 16); ++i)
      block += literal("x-" + std::to_string(i), std::string(many ? 1 : 4000, 'v'));
    std::string bytes = frame(1, 0, 3, block.substr(0, 10));
    for (size_t at = 10; at < block.size(); at += 16000) {
      bytes += frame(9, at + 16000 >= block.size() ? 4 : 0, 3, std::string_view(block).substr(at, 16000));
    }
    CHECK(peer.feed(bytes));
    CHECK(peer.server.methods.size() == 1);
    CHECK(peer.server.refused == std::vector{Reason::HEADERS_TOO_LARGE});
    peer.drain();
    CHECK(peer.server.session.open_streams() == 1);
    peer.open(5);
    CHECK(peer.server.methods.size() == 2);
    CHECK(peer.server.session.open_streams() == 2);
  }
}

TEST_CASE("a malformed request costs its stream and leaves the count right") {
  Hostile peer;
  peer.open(1);
  peer.feed(frame(1, 4, 3, connect_block() + literal("Upper", "case")));
  peer.feed(frame(1, 4, 5, connect_block() + literal(":method", "CONNECT")));
  peer.drain();
  CHECK(peer.server.methods.size() == 1);
  CHECK(peer.server.session.open_streams() == 1);
}

TEST_CASE("an endless header block ends the connection with its reason") {
  Hostile peer;
  REQUIRE(peer.feed(frame(1, 0, 1, connect_block())));
  std::string indexed =
      std::string("\x40\x01x\x7f\xa1\x1e", 6) + std::string(4000, 'v');  // into the table, once
  REQUIRE(peer.feed(frame(9, 0, 1, indexed)));
  int sent = peer.until_refused([](int) { return frame(9, 0, 1, std::string(16000, '\xbe')); }, 100);
  CHECK(sent < 3);
  CHECK(peer.server.session.error().reason == Reason::HEADERS_TOO_LARGE);
}

TEST_CASE("CONTINUATION frames without end are cut off") {
  Hostile peer;
  REQUIRE(peer.feed(frame(1, 0, 1, connect_block())));
  CHECK(peer.until_refused([](int) { return frame(9, 0, 1, ""); }, 20'000) < 2000);
  CHECK(peer.server.session.error().reason != Reason::NONE);
}

TEST_CASE("what is not HTTP/2 and frames that break it are protocol errors") {
  {
    Side server(H2Session::Role::server);
    std::string_view http1 = "GET / HTTP/1.1\r\nHost: x\r\n\r\n";
    CHECK(!server.session.feed({reinterpret_cast<const uint8_t*>(http1.data()), http1.size()}));
    CHECK(server.session.error().reason == Reason::H2_PROTOCOL);
  }
  for (const auto& bytes :
       {frame(8, 0, 0, std::string(4, 0)), frame(6, 0, 0, "short"), frame(4, 0, 1, ""), frame(0, 0, 0, "x"),
        frame(9, 4, 1, "x"), frame(1, 4, 2, connect_block()), frame(5, 4, 1, std::string(8, 0))}) {
    Hostile peer;
    bool fine = peer.feed(bytes);
    CAPTURE(bytes);
    CHECK(peer.drain().find(std::string("\x07\0\0\0\0\0", 6)) != std::string::npos);  // a GOAWAY
    if (!fine) CHECK(peer.server.session.error().reason == Reason::H2_PROTOCOL);
    if (fine) CHECK(peer.server.session.finished());
  }
}

TEST_CASE("frames cut at any byte mean the same") {
  Hostile peer;
  auto bytes = frame(1, 4, 1, connect_block()) + frame(0, 0, 1, "hello ") + frame(0, 1, 1, "world");
  for (char byte : bytes) REQUIRE(peer.feed({&byte, 1}));
  CHECK(peer.server.requests.at(1)->in == "hello world");
  CHECK(peer.server.requests.at(1)->ended);
}

TEST_CASE("frames behind a DATA frame that fills the buffer stay inside it") {
  // The peer's window decides how large the DATA frames are, and the sources break right behind the last one.
  constexpr size_t kOut = 256 * 1024;
  for (uint32_t window : {21845u, 40000u, 52419u, 65527u, 65535u}) {
    CAPTURE(window);
    Wire wire({}, {.stream_window = window});
    std::vector<Stream*> streams;
    for (int i = 0; i < 12; ++i) streams.push_back(&wire.open());
    wire.settle();
    for (auto* stream : streams) {
      auto& source = wire.at_server(*stream);
      source.out = pattern(window);
      source.end_after = true;
      wire.server.session.resume(source);
      wire.server.session.ping();
    }
    while (true) {
      auto exact = std::make_unique<uint8_t[]>(kOut);  // what writes behind it is seen by the sanitiser
      size_t count = wire.server.session.drain({exact.get(), kOut});
      if (count == 0) break;
      CHECK(count <= kOut);
      wire.client.session.feed({exact.get(), count});
    }
    for (auto* stream : streams) CHECK(stream->in.size() == window);
  }
}

TEST_CASE("a reset behind DATA that fills the buffer to the last bytes waits for the next one") {
  // Four frames leave 12 bytes; the connection's window then asks a fifth stream, whose source breaks, for
  // one byte.
  constexpr size_t kOut = 256 * 1024;
  Wire wire({}, {.stream_window = 65524, .connection_window = 4 * 65524 + 1});
  std::vector<Stream*> streams;
  for (int i = 0; i < 5; ++i) streams.push_back(&wire.open());
  wire.settle();
  for (size_t i = 0; i < 5; ++i) {
    auto& source = wire.at_server(*streams[i]);
    source.out = pattern(i < 4 ? 100'000 : 0);
    source.break_source = i == 4;
    wire.server.session.resume(source);
  }
  auto exact = std::make_unique<uint8_t[]>(kOut);
  for (int i = 0; i < 3; ++i) {
    size_t count = wire.server.session.drain({exact.get(), kOut});
    REQUIRE(count <= kOut);
    wire.client.session.feed({exact.get(), count});
  }
  wire.settle();
  CHECK(streams[4]->closed == 1);
}

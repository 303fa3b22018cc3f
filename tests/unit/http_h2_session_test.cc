// HTTP/2 sessions that talk to each other in memory.
#include <doctest/doctest.h>

#include <memory>
#include <string>
#include <vector>

#include "h2_pairs.h"

using namespace nodemesh;
using namespace nodemesh::test;

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

TEST_CASE("a client that opens streams before it announces its limits still begins with SETTINGS") {
  Wire wire;
  struct Late final : H2SessionOwner {
    void on_request(int32_t, const HeaderBlock&, bool) override {}
    H2Session session{H2Session::Role::client, *this};
  } late;
  SessionStream stream;
  stream.session = &late.session;
  stream.consumes = false;
  HeaderField fields[] = {{":method", "CONNECT"}, {":authority", "10.0.0.1:80"}};
  REQUIRE(late.session.open(stream, fields));
  late.session.announce({.stream_window = 100'000});
  size_t count = late.session.drain(wire.buffer);
  CHECK(wire.buffer[24 + 3] == 4);  // behind the preface, the type of the first frame (RFC 9113 3.4)
  REQUIRE(wire.server.session.feed({wire.buffer.data(), count}));
  REQUIRE(wire.server.requests.size() == 1);
  auto& source = *wire.server.requests.begin()->second;
  source.out = pattern(300'000);
  wire.server.session.resume(source);
  for (int i = 0; i < 10; ++i) {
    count = wire.server.session.drain(wire.buffer);
    if (count > 0) late.session.feed({wire.buffer.data(), count});
    count = late.session.drain(wire.buffer);
    if (count > 0) wire.server.session.feed({wire.buffer.data(), count});
  }
  CHECK(stream.in.size() == 100'000);
  late.session.close_all(true);
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
    wire.server.session.refuse(stream.stream_id(), "401");
    wire.settle();
    REQUIRE(stream.status == 401);
    wire.client.session.abandon(stream, H2Error::cancel);
    wire.settle();
    REQUIRE(wire.server.session.error().reason == Reason::NONE);
    REQUIRE(wire.server.session.open_streams() == 0);
    wire.streams.clear();
  }
}

TEST_CASE("a refused stream is over when its answer has gone, whether or not its peer ends it") {
  for (bool owned : {false, true}) {
    CAPTURE(owned);
    Wire wire;
    wire.server.accept = owned;
    wire.server.answer = false;
    auto& stream = wire.open();
    REQUIRE(wire.move(wire.client, wire.server));
    if (owned) {
      wire.server.session.refuse(wire.at_server(stream), "401");
    } else {
      wire.server.session.refuse(stream.stream_id(), "401");
    }
    wire.settle();
    CHECK(stream.status == 401);
    CHECK((stream.closed == 1 && stream.error == H2Error::none && stream.processed));
    CHECK(wire.server.session.open_streams() == 0);
    CHECK(wire.client.session.open_streams() == 0);
  }
}

TEST_CASE("the answer to one kind of PING is not taken for the answer to another") {
  Wire wire;
  wire.settle();
  wire.server.session.ping(H2Ping::alive);
  wire.settle();
  CHECK(wire.server.ping_acks[H2Ping::alive] == 1);
  CHECK(wire.server.ping_acks[H2Ping::drain] == 0);
  wire.server.session.ping(H2Ping::drain);
  wire.settle();
  CHECK(wire.server.ping_acks[H2Ping::drain] == 1);
  CHECK(wire.server.ping_acks[H2Ping::alive] == 1);
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

TEST_CASE("a connection that is quiet for days but for its PINGs is no flood") {
  Wire wire;
  auto& stream = wire.open();
  for (int i = 0; i < 20'000; ++i) {
    wire.client.session.ping(H2Ping::alive);
    wire.server.session.ping(H2Ping::alive);
    wire.settle();
    REQUIRE(wire.client.session.error().reason == Reason::NONE);
    REQUIRE(wire.server.session.error().reason == Reason::NONE);
  }
  CHECK(wire.client.ping_acks[H2Ping::alive] == 20'000);
  CHECK(stream.closed == 0);
}

TEST_CASE("frames behind a DATA frame that fills the buffer stay inside it") {
  // The peer's window decides how large the DATA frames are, and the sources break right behind the last one.
  constexpr size_t kOut = 256 * 1024;
  for (uint32_t window : {21845u, 40000u, 52419u, 65527u, 65535u}) {
    CAPTURE(window);
    Wire wire({}, {.stream_window = window});
    std::vector<SessionStream*> streams;
    for (int i = 0; i < 12; ++i) streams.push_back(&wire.open());
    wire.settle();
    for (auto* stream : streams) {
      auto& source = wire.at_server(*stream);
      source.out = pattern(window);
      source.end_after = true;
      wire.server.session.resume(source);
      wire.server.session.ping(H2Ping::alive);
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
  std::vector<SessionStream*> streams;
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

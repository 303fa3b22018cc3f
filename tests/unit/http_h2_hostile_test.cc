// An HTTP/2 server and peers that break the rules.
#include <doctest/doctest.h>

#include <string>
#include <utility>
#include <vector>

#include "h2_pairs.h"

using namespace nodemesh;
using namespace nodemesh::test;

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

TEST_CASE("an owner may leave its stream while the bytes of one read are being handed out") {
  const std::string bytes(1000, 'x');
  // Its own, with more frames behind than are handed out at once.
  Hostile own;
  own.open(1);
  auto& leaves = *own.server.requests.at(1);
  int calls = 0;
  leaves.then = [&] { ++calls, own.server.session.abandon(leaves, H2Error::cancel); };
  std::string many;
  for (int i = 0; i < 200; ++i) many += frame(0, 0, 1, bytes);
  CHECK(own.feed(many));
  CHECK(calls == 1);
  // Another's, whose bytes come next.
  Hostile others;
  others.open(1), others.open(3);
  auto &first = *others.server.requests.at(1), &second = *others.server.requests.at(3);
  first.then = [&] { others.server.session.abandon(second, H2Error::cancel); };
  CHECK(others.feed(frame(0, 0, 1, bytes) + frame(0, 0, 3, bytes) + frame(0, 1, 1, bytes)));
  CHECK(first.in.size() == 2000);
  CHECK(first.ended);
  CHECK(second.in.empty());
  CHECK(second.closed == 0);
  // What nobody took is given back: the connection's window is not used up by it.
  for (int i = 0; i < 30; ++i) CHECK(others.feed(frame(0, 0, 3, std::string(1 << 20, 'y'))));
}

TEST_CASE("frames cut at any byte mean the same") {
  Hostile peer;
  auto bytes = frame(1, 4, 1, connect_block()) + frame(0, 0, 1, "hello ") + frame(0, 1, 1, "world");
  for (char byte : bytes) REQUIRE(peer.feed({&byte, 1}));
  CHECK(peer.server.requests.at(1)->in == "hello world");
  CHECK(peer.server.requests.at(1)->ended);
}

// One socket of a relay: what edge-triggered events must not lose, and the order in which bytes and ends
// leave.
#include <doctest/doctest.h>

#include <optional>
#include <vector>

#include "io/tcp_end.h"
#include "io_pairs.h"

using namespace nodemesh;
using namespace nodemesh::io;
using namespace nodemesh::test;

namespace {

struct Owner final : TcpEndOwner {
  explicit Owner(Reactor& reactor) : end(std::in_place, reactor, *this) {}
  void on_readable(TcpEnd&) override {
    ++readable;
    if (read_on_event) read();
  }
  void on_drained(TcpEnd&, size_t bytes) override {
    drained += bytes;
    if (die_when_drained) end.reset();
  }
  void on_connected(TcpEnd&, int error) override {
    connected = error;
    if (close_when_connected) end->close();
    if (read_on_event && end->readable()) read();
  }
  void on_broken(TcpEnd&) override { ++broken; }
  void read() {
    uint8_t buffer[4096];
    for (bool more = end->readable(); more;) {
      auto [bytes, status] = end->read(buffer);
      text.append(reinterpret_cast<char*>(buffer), bytes);
      ended = ended || status == TcpEnd::Status::end;
      more = status == TcpEnd::Status::more;
    }
  }
  size_t write(std::string_view bytes) {
    iovec piece{const_cast<char*>(bytes.data()), bytes.size()};
    return end->write({&piece, 1}, bytes.size());
  }

  std::string text;
  bool ended = false, read_on_event = true, die_when_drained = false, close_when_connected = false;
  int readable = 0, broken = 0, connected = -1;
  size_t drained = 0;
  std::optional<TcpEnd> end;
};

}  // namespace

TEST_CASE("bytes with the peer's end behind them are read with that end, in one event") {
  Reactor reactor;
  Owner owner(reactor);
  auto [near, far] = tcp_pair();
  send_all(far, "last words");
  ::shutdown(far.get(), SHUT_WR);
  REQUIRE(owner.end->adopt(std::move(near)));
  turn_until(reactor, [&] { return owner.ended; });
  CHECK(owner.text == "last words");
  CHECK(owner.end->read_ended());
}

TEST_CASE("an end that comes after the bytes were read is told by itself") {
  Reactor reactor;
  Owner owner(reactor);
  auto [near, far] = tcp_pair();
  REQUIRE(owner.end->adopt(std::move(near)));
  send_all(far, "words");
  turn_until(reactor, [&] { return owner.text == "words"; });
  CHECK(!owner.ended);
  far.reset();
  turn_until(reactor, [&] { return owner.ended; });
}

TEST_CASE("a server that speaks and ends before our connect is noticed loses neither words nor end") {
  Reactor reactor;
  Owner owner(reactor);
  Listening listening;
  REQUIRE(owner.end->connect(socket_v4(), listening.addr, AF_INET) == EINPROGRESS);
  Fd server = listening.accept();
  send_all(server, "220 hello");
  server.reset();
  turn_until(reactor, [&] { return owner.ended; });
  CHECK(owner.connected == 0);
  CHECK(owner.text == "220 hello");
}

TEST_CASE("what the kernel does not take is kept, goes first, and is followed by the end") {
  Reactor reactor;
  Owner owner(reactor);
  auto [near, far] = tcp_pair(8192, 8192);
  REQUIRE(owner.end->adopt(std::move(near)));
  auto first = pattern(1 << 20), second = pattern(1000, 7);
  size_t gone = owner.write(first);
  CHECK(gone < first.size());
  CHECK(owner.end->kept() == first.size() - gone);
  CHECK(owner.write(second) == 0);
  owner.end->end_write();
  CHECK(!owner.end->write_ended());
  Received received;
  turn_until(reactor, [&] { return received.take(far), received.ended; });
  CHECK(received.text == first + second);
  CHECK(owner.drained == first.size() + second.size() - gone);
  CHECK(owner.end->kept() == 0);
  CHECK(owner.end->write_ended());
}

TEST_CASE("a reader that is always a little behind does not make us hold what has passed") {
  Reactor reactor;
  Owner owner(reactor);
  auto [near, far] = tcp_pair(8192, 8192);
  REQUIRE(owner.end->adopt(std::move(near)));
  auto chunk = pattern(64 * 1024);
  size_t written = owner.write(chunk) > 0 ? chunk.size() : 0;
  REQUIRE(owner.end->kept() > 0);
  Received received;
  size_t most = 0;
  while (written < 32u << 20) {
    received.take(far, 32 * 1024);
    received.text.clear();
    reactor.run_once(milliseconds(0));
    while (owner.end->kept() > 0 && owner.end->kept() < 96 * 1024) {
      owner.write(chunk);
      written += chunk.size();
    }
    most = std::max(most, owner.end->held());
    if (owner.end->kept() == 0) written += owner.write(chunk) > 0 ? chunk.size() : 0;
  }
  CHECK(most <= 1 << 20);
}

TEST_CASE("bytes and an end written before there is a socket follow the connect, in order") {
  Reactor reactor;
  Owner owner(reactor);
  Listening listening;
  CHECK(owner.write("early ") == 0);
  int result = owner.end->connect(socket_v4(), listening.addr, AF_INET);
  CHECK((result == 0 || result == EINPROGRESS));
  owner.write("words");
  owner.end->end_write();
  Fd server = listening.accept();
  Received received;
  turn_until(reactor, [&] { return received.take(server), received.ended; });
  CHECK(received.text == "early words");
  CHECK(owner.broken == 0);
}

TEST_CASE("an end alone, asked for before there is a socket, follows the connect") {
  Reactor reactor;
  Owner owner(reactor);
  Listening listening;
  owner.end->end_write();
  owner.end->connect(socket_v4(), listening.addr, AF_INET);
  Fd server = listening.accept();
  Received received;
  turn_until(reactor, [&] { return received.take(server), received.ended; });
}

TEST_CASE("a refused connect says so, at once or later") {
  Reactor reactor;
  Owner owner(reactor);
  SockAddr nobody;
  {
    Listening gone;
    nobody = gone.addr;
  }
  int result = owner.end->connect(socket_v4(), nobody, AF_INET);
  if (result == EINPROGRESS) {
    turn_until(reactor, [&] { return owner.connected != -1; });
    result = owner.connected;
  }
  CHECK(result == ECONNREFUSED);
}

TEST_CASE("an IPv6 destination is not squeezed into an IPv4 socket") {
  Reactor reactor;
  Owner owner(reactor);
  CHECK(owner.end->connect(socket_v4(), *SockAddr::parse("[fd00::7f00:1]:80"), AF_INET) == EAFNOSUPPORT);
}

TEST_CASE("a reset by the peer is told once as broken and never as an end") {
  Reactor reactor;
  Owner owner(reactor);
  auto [near, far] = tcp_pair();
  REQUIRE(owner.end->adopt(std::move(near)));
  turns(reactor, 2);
  close_with_reset(far);
  turn_until(reactor, [&] { return owner.broken > 0; });
  turns(reactor, 5);
  CHECK(owner.broken == 1);
  CHECK(!owner.ended);
  uint8_t byte;
  CHECK(owner.end->read({&byte, 1}).status == TcpEnd::Status::broken);
}

TEST_CASE("reset ends the peer with RST, close with FIN") {
  Reactor reactor;
  for (bool abrupt : {true, false}) {
    Owner owner(reactor);
    auto [near, far] = tcp_pair();
    REQUIRE(owner.end->adopt(std::move(near)));
    turns(reactor, 2);
    abrupt ? owner.end->reset() : owner.end->close();
    Received received;
    turn_until(reactor, [&] { return received.take(far), received.ended || received.reset; });
    CHECK(received.reset == abrupt);
  }
}

TEST_CASE("the owner may destroy the end when it has drained") {
  Reactor reactor;
  Owner owner(reactor);
  auto [near, far] = tcp_pair(8192, 8192);
  REQUIRE(owner.end->adopt(std::move(near)));
  owner.write(pattern(200'000));
  owner.die_when_drained = true;
  send_all(far, "and readable at the same time");
  Received received;
  turn_until(reactor, [&] { return received.take(far), !owner.end.has_value(); });
}

TEST_CASE("no call comes after close, not even for work that was put off to later in the turn") {
  Reactor reactor;
  Owner owner(reactor);
  Listening listening;
  REQUIRE(owner.end->connect(socket_v4(), listening.addr, AF_INET) == EINPROGRESS);
  owner.write("kept until connected");
  owner.close_when_connected = true;
  turn_until(reactor, [&] { return owner.connected == 0; });
  turns(reactor, 5);
  CHECK(owner.broken == 0);
  CHECK(owner.drained == 0);
  CHECK(owner.readable == 0);
  CHECK(owner.end->kept() == 0);
}

TEST_CASE("an end whose socket another process still holds hears nothing after it is gone") {
  Reactor reactor;
  Listening listening;
  Fd socket = socket_v4();
  Fd copy(::dup(socket.get()));
  auto owner = std::make_unique<Owner>(reactor);
  owner->end->connect(std::move(socket), listening.addr, AF_INET);
  Fd server = listening.accept();
  turn_until(reactor, [&] { return owner->connected == 0; });
  owner.reset();
  send_all(server, "for nobody");
  turns(reactor, 5);
}

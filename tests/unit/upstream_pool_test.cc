// The pool of tunnels of a worker: one connection for a hundred streams, and what happens to those who wait.
#include <doctest/doctest.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "io_pairs.h"
#include "telemetry/registry.h"
#include "tls_pairs.h"
#include "upstream/pool.h"

using namespace nodemesh;
using namespace nodemesh::test;
using namespace nodemesh::upstream;

namespace {

struct Stream final : http::H2Stream {
  void on_headers(const http::HeaderBlock& headers, bool) override { status = headers.status; }
  void on_data(std::span<const iovec>, size_t) override {}
  void on_end() override {}
  Pull pull(std::span<uint8_t>) override { return {}; }
  void on_close(http::H2Error, bool) override { ++closed; }
  int status = 0, closed = 0;
};

struct Waiter final : TunnelWaiter {
  void on_tunnel(http::HboneConnection& to) override { ++tunnels, connection = &to; }
  void on_no_tunnel(const Error& error) override {
    ++refusals, why = error.reason;
    if (then) then();
  }
  int tunnels = 0, refusals = 0;
  Reason why = Reason::NONE;
  http::HboneConnection* connection = nullptr;
  std::function<void()> then;
};

// The peers' side: answers every CONNECT with 200.
struct Servers final : http::HboneOwner {
  void on_hbone_request(http::HboneConnection& of, int32_t id, const http::HeaderBlock&, bool) override {
    auto& stream = streams.emplace_back(std::make_unique<Stream>());
    of.session().accept(*stream, id);
    http::HeaderField ok[] = {{":status", "200"}};
    of.session().respond(*stream, ok);
    of.schedule_flush();
  }
  void on_hbone_handshake(http::HboneConnection&, const Error&, Monotonic::duration) override {}
  void on_hbone_draining(http::HboneConnection&) override {}
  void on_hbone_closed(http::HboneConnection&, const Error&) override { ++closed; }
  int closed = 0;
  std::vector<std::unique_ptr<Stream>> streams;
  std::vector<std::unique_ptr<http::HboneConnection>> connections;
};

struct World {
  World() {
    source.credential = pair.client_credential;
    source.stock = &stock;
    source.family = AF_INET;
    source.cookie = 77;
    listening = std::make_unique<Listening>();
    key = {77, listening->addr, "default/server"};
  }
  ~World() {
    pool.reset();
    servers.connections.clear();
  }
  void give(size_t count) {
    std::vector<Fd> sockets;
    for (size_t i = 0; i < count; ++i) sockets.push_back(socket_v4());
    stock.add(warden::SocketKind::out, std::move(sockets));
  }
  void turn() {
    for (;;) {
      Fd fd(listening ? ::accept4(listening->fd.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC) : -1);
      if (!fd) break;
      servers.connections.push_back(std::make_unique<http::HboneConnection>(
          http::H2Session::Role::server, reactor, buffers, std::move(fd),
          *pair.server->accept(pair.server_credential), servers, limits, times));
      REQUIRE(servers.connections.back()->start());
    }
    reactor.run_once(milliseconds(5));
  }
  template <class Done>
  void until(Done done) {
    auto end = deadline();
    while (!done() && Monotonic::now() < end) turn();
    REQUIRE(done());
  }
  Stream& open(http::HboneConnection& on) {
    auto& stream = *streams.emplace_back(std::make_unique<Stream>());
    http::HeaderField fields[] = {{":method", "CONNECT"}, {":authority", "127.0.0.1:80"}};
    REQUIRE(on.session().open(stream, fields));
    on.schedule_flush();
    return stream;
  }

  Clock clock;
  telemetry::Metrics metrics{{}, clock};
  io::Reactor reactor;
  io::Buffers buffers;
  Pair pair;
  http::HboneTimes times;
  http::H2Limits limits;
  int asked = 0;
  SocketStock stock{[this](warden::SocketKind, uint32_t) { ++asked; }};
  std::vector<std::unique_ptr<Stream>> streams;
  Servers servers;
  std::unique_ptr<TunnelPool> pool =
      std::make_unique<TunnelPool>(reactor, buffers, *pair.client, metrics.shard(0), times);
  PoolSource source;
  std::unique_ptr<Listening> listening;
  TunnelKey key;
};

}  // namespace

TEST_CASE("a hundred streams share a connection that is still connecting, the next ones get a second") {
  World world;
  world.give(4);
  Waiter waiter;
  auto* first = world.pool->acquire(world.source, world.key, waiter);
  REQUIRE(first != nullptr);
  for (int i = 0; i < 100; ++i) {
    CHECK(world.pool->acquire(world.source, world.key, waiter) == first);
    world.open(*first);
  }
  auto* second = world.pool->acquire(world.source, world.key, waiter);
  REQUIRE(second != nullptr);
  CHECK(second != first);
  CHECK(world.pool->size() == 2);
  world.open(*second);
  world.until([&] { return std::ranges::all_of(world.streams, [](auto& s) { return s->status == 200; }); });
  CHECK(waiter.tunnels == 0);
  first->session().abandon(*world.streams[0], http::H2Error::cancel);
  first->schedule_flush();
  world.until([&] { return first->session().open_streams() == 99; });
  CHECK(world.pool->acquire(world.source, world.key, waiter) ==
        first);  // fullest first, so that others can idle out
}

TEST_CASE("connections are never shared between pods, peers or identities") {
  World world;
  world.give(8);
  Waiter waiter;
  auto* first = world.pool->acquire(world.source, world.key, waiter);
  auto other_pod = world.key;
  other_pod.cookie = 78;
  auto other_identity = world.key;
  other_identity.accepted = "default/another";
  CHECK(world.pool->acquire(world.source, other_pod, waiter) != first);
  CHECK(world.pool->acquire(world.source, other_identity, waiter) != first);
  CHECK(world.pool->size() == 3);
}

TEST_CASE("who waits for a socket gets a tunnel when one comes, and nothing when it cancelled") {
  World world;
  Waiter patient, gone;
  CHECK(world.pool->acquire(world.source, world.key, gone) == nullptr);
  CHECK(world.pool->acquire(world.source, world.key, patient) == nullptr);
  CHECK(world.asked == 1);
  world.pool->cancel(gone);
  world.give(1);
  CHECK((patient.tunnels == 1 && gone.tunnels == 0));
  CHECK(patient.connection != nullptr);
}

TEST_CASE("more than a hundred waiters are served by as many connections as it takes") {
  World world;
  std::vector<Waiter> waiters(150);
  struct Opens final : TunnelWaiter {
    World* world = nullptr;
    void on_tunnel(http::HboneConnection& to) override { world->open(to); }
    void on_no_tunnel(const Error&) override {}
  };
  std::vector<Opens> opens(150);
  for (auto& waiter : opens) {
    waiter.world = &world;
    CHECK(world.pool->acquire(world.source, world.key, waiter) == nullptr);
  }
  world.give(4);
  CHECK(world.streams.size() == 150);
  CHECK(world.pool->size() == 2);
  world.until([&] { return std::ranges::all_of(world.streams, [](auto& s) { return s->status == 200; }); });
}

TEST_CASE("no socket, no identity and no way there are told to all who wait, and leave nothing behind") {
  World world;
  Waiter first, second, third;
  first.then = [&] { world.pool->cancel(second); };
  for (auto* waiter : {&first, &second, &third})
    CHECK(world.pool->acquire(world.source, world.key, *waiter) == nullptr);
  world.stock.none(warden::SocketKind::out, {Reason::NO_SOCKET, ""});
  CHECK((first.refusals == 1 && second.refusals == 0 && third.refusals == 1));
  CHECK(third.why == Reason::NO_SOCKET);
  CHECK(world.pool->groups() == 0);

  world.give(4);
  Waiter anonymous;
  auto without = world.source;
  without.credential = nullptr;
  CHECK(world.pool->acquire(without, world.key, anonymous) == nullptr);
  CHECK(anonymous.why == Reason::NO_IDENTITY);
  CHECK(world.pool->groups() == 0);

  world.listening.reset();
  Waiter refused;
  auto* connection = world.pool->acquire(world.source, world.key, refused);
  Stream* stream = connection != nullptr ? &world.open(*connection) : nullptr;
  world.until([&] { return refused.refusals == 1 || (stream != nullptr && stream->closed == 1); });
  world.until([&] { return world.pool->size() == 0; });
  CHECK(world.pool->groups() == 0);
}

TEST_CASE("a pod that goes takes its connections and its waiters along and no others") {
  World world;
  world.give(3);
  Waiter waiter;
  auto* connection = world.pool->acquire(world.source, world.key, waiter);
  auto& stream = world.open(*connection);
  auto other = world.key;
  other.cookie = 78;
  auto* stays = world.pool->acquire(world.source, other, waiter);
  auto& lives = world.open(*stays);
  world.until([&] { return stream.status == 200 && lives.status == 200; });
  Waiter waiting;
  for (int i = 0; i < 99; ++i) world.open(*connection);
  world.stock.clear({Reason::NONE, ""});
  CHECK(world.pool->acquire(world.source, world.key, waiting) == nullptr);
  world.pool->close_pod(77, {Reason::POD_GONE, "gone"});
  CHECK(waiting.why == Reason::POD_GONE);
  world.until([&] { return stream.closed == 1 && world.pool->size() == 1; });
  CHECK(lives.closed == 0);
  CHECK(world.pool->groups() == 1);
  world.give(4);  // nobody of the pod that is gone takes one
  CHECK(world.pool->size() == 1);
  // The same cookie again, as when a pod leaves the mesh and returns.
  auto* again = world.pool->acquire(world.source, world.key, waiter);
  REQUIRE(again != nullptr);
  auto& fresh = world.open(*again);
  world.until([&] { return fresh.status == 200; });
}

TEST_CASE("a connection that drains is replaced for new streams and kept for its own") {
  World world;
  world.give(4);
  Waiter waiter;
  auto* first = world.pool->acquire(world.source, world.key, waiter);
  auto& stream = world.open(*first);
  world.until([&] { return stream.status == 200; });
  world.servers.connections[0]->drain();
  world.until([&] { return first->draining(); });
  auto* second = world.pool->acquire(world.source, world.key, waiter);
  CHECK(second != first);
  auto& fresh = world.open(*second);
  world.until([&] { return fresh.status == 200; });
  CHECK(stream.closed == 0);
  first->session().abandon(stream, http::H2Error::cancel);
  first->schedule_flush();
  world.until([&] { return world.pool->size() == 1; });
}

TEST_CASE("a pool may be destroyed while it connects, waits and serves") {
  World world;
  world.give(1);
  Waiter waiter;
  auto& stream = world.open(*world.pool->acquire(world.source, world.key, waiter));
  auto other = world.key;
  other.cookie = 79;
  CHECK(world.pool->acquire(world.source, other, waiter) == nullptr);
  world.pool.reset();
  CHECK(stream.closed == 1);
  world.give(4);
  turns(world.reactor, 3);
  CHECK(waiter.tunnels == 0);
}

// What a worker does when descriptors or memory get short, and with connections on which nothing moves.
#include <doctest/doctest.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "proxy_world.h"

using namespace nodemesh;
using namespace nodemesh::test;
using World = WorkerWorld;

namespace {

const SockAddr kSomewhere = *SockAddr::parse("203.0.113.1:9");

// A connection that one of the pod's listeners has just accepted; returns the other end.
Fd refused_by(World& world, nm_listener kind, Reason reason) {
  auto [near, far] = tcp_pair();
  uint64_t cookie = kind == NM_LISTENER_OUTBOUND ? kClientPod : kServerPod;
  world.worker.overload.refuse(*world.worker.find_pod(cookie), kind,
                               {std::move(near), cookie, kClient, kSomewhere}, reason);
  return std::move(far);
}

struct Dialled {
  Fd client, server;
};

// `count` established connections of the client pod, which wait for nothing.
std::vector<Dialled> dial(World& world, const Listening& application, size_t count) {
  std::vector<Dialled> made;
  for (size_t i = 0; i < count; ++i) {
    Fd client = world.dial(application.addr);
    made.push_back({std::move(client), world.accept(application)});
  }
  return made;
}

// The kernel tells it once.
bool is_reset(const Fd& fd) {
  Received received;
  received.take(fd);
  return received.reset;
}

}  // namespace

TEST_CASE("a connection refused for a limit is reset, counted under its path, and told with its reason") {
  World world;
  Fd outbound = refused_by(world, NM_LISTENER_OUTBOUND, Reason::OUT_OF_DESCRIPTORS);
  Fd hbone = refused_by(world, NM_LISTENER_HBONE, Reason::OUT_OF_DESCRIPTORS);
  Fd plaintext = refused_by(world, NM_LISTENER_INBOUND, Reason::OVER_LIMIT);
  CHECK((is_reset(outbound) && is_reset(hbone) && is_reset(plaintext)));
  CHECK(world.total(Direction::outbound, Path::passthrough, Reason::OUT_OF_DESCRIPTORS) == 1);
  CHECK(world.total(Direction::inbound, Path::hbone, Reason::OUT_OF_DESCRIPTORS) == 1);
  CHECK(world.total(Direction::inbound, Path::plaintext, Reason::OVER_LIMIT) == 1);
  auto told = world.denials.recent();
  REQUIRE(told.size() == 3);
  CHECK(told[0].reason == Reason::OUT_OF_DESCRIPTORS);
  CHECK(told[0].source == "default/client");
  CHECK(told[1].destination == "default/server:9");
}

TEST_CASE("above nine tenths of the descriptors new connections are refused, but not those of a modest pod") {
  World world({.descriptor_limit = 100, .seed = 1});  // a share is 45
  Listening application;
  auto open = dial(world, application, 12);
  const PodState &busy = *world.worker.find_pod(kClientPod), &modest = *world.worker.find_pod(kServerPod);
  CHECK(world.worker.overload.check(busy, 89) == Reason::NONE);
  CHECK(world.worker.overload.check(busy, 90) == Reason::OUT_OF_DESCRIPTORS);
  CHECK(world.worker.overload.check(modest, 90) == Reason::NONE);
  CHECK(world.worker.overload.check(modest, 97) == Reason::OUT_OF_DESCRIPTORS);
}

TEST_CASE("while descriptors are getting short a pod has no more than its share, its tunnels counted too") {
  World world({.descriptor_limit = 10, .seed = 1});  // a share is 4
  std::vector<std::unique_ptr<MeshClient>> peers;
  const PodState& pod = *world.worker.find_pod(kServerPod);
  for (int i = 0; i < 5; ++i) {
    CHECK(world.worker.overload.check(pod, 6) == Reason::NONE);
    peers.push_back(std::make_unique<MeshClient>(world));
  }
  CHECK(world.worker.overload.check(pod, 6) == Reason::OVER_LIMIT);
  CHECK(world.worker.overload.check(pod, 3) == Reason::NONE);
  CHECK(world.worker.overload.check(*world.worker.find_pod(kClientPod), 6) == Reason::NONE);
}

TEST_CASE("room is made by a tunnel without streams first, and with one that carries something last") {
  World world;
  Listening application;
  MeshClient idle(world), busy(world);
  auto& stream = busy.open(application.addr.to_string());
  world.until([&] { return stream.status == 200 && idle.connection->ready(); });
  CHECK(world.worker.overload.shed_here(2));
  world.until([&] { return idle.closed == 1; });
  CHECK((busy.closed == 0 && stream.closed == 0));
  CHECK(world.worker.overload.shed_here(1));
  world.until([&] { return stream.closed == 1; });
  CHECK(world.total(Direction::inbound, Path::hbone, Reason::OUT_OF_DESCRIPTORS) == 1);
  CHECK_FALSE(world.worker.overload.shed_here(2));
}

TEST_CASE("room is made by the connection that was silent for longest, not by the oldest") {
  World world;
  Listening application;
  auto open = dial(world, application, 3);
  // Turns apart, so that the order of their last bytes is known: the second is silent for longest.
  for (size_t i : {1u, 0u, 2u}) {
    auto until = world.worker.reactor.now() + milliseconds(2);
    world.until([&] { return world.worker.reactor.now() > until; });
    world.check_echo(open[i].client, open[i].server);
  }
  CHECK(world.worker.overload.shed_here(2));
  turns(world.worker.reactor, 3);
  CHECK(is_reset(open[1].client));
  CHECK_FALSE((is_reset(open[0].client) || is_reset(open[2].client)));
  CHECK(world.total(Direction::outbound, Path::same_node, Reason::OUT_OF_DESCRIPTORS) == 1);
}

TEST_CASE("what is silent for longer than its limit is reset with its reason, what moves stays") {
  World world({.descriptor_limit = 100'000,
               .seed = 1,
               .idle = {.connection = milliseconds(500), .stream = milliseconds(500)}});
  Listening application;
  auto open = dial(world, application, 2);
  MeshClient ours(world), stranger(world, {.ours = false});
  auto& between_agents = ours.open(application.addr.to_string());
  Fd first = world.accept(application);
  auto& strange = stranger.open(application.addr.to_string());
  Fd second = world.accept(application);
  world.until([&] { return between_agents.status == 200 && strange.status == 200; });
  world.until([&] {
    send_all(open[1].client, "x");
    turns(world.worker.reactor, 3);
    world.worker.overload.tick();
    return strange.closed == 1 && world.worker.open_connections() == 2;
  });
  CHECK((is_reset(open[0].client) && is_reset(open[0].server)));
  CHECK(is_reset(second));
  CHECK(world.total(Direction::outbound, Path::same_node, Reason::IDLE_TIMEOUT) == 1);
  CHECK(world.total(Direction::inbound, Path::hbone, Reason::IDLE_TIMEOUT) == 1);
  CHECK(between_agents.closed == 0);
  CHECK_FALSE(is_reset(first));
  CHECK_FALSE(is_reset(open[1].server));
  CHECK((ours.closed == 0 && stranger.closed == 0));
}

TEST_CASE("when peers do not read, the pod that holds most loses what holds most, and all is given back") {
  World world({.descriptor_limit = 100'000, .seed = 1, .held_limit = 600 * 1024});
  Listening application(4096);
  MeshClient mesh(world);
  std::vector<MeshClient::Stream*> streams;
  std::vector<Fd> servers;
  for (int i = 0; i < 4; ++i) {
    streams.push_back(&mesh.open(application.addr.to_string()));
    servers.push_back(world.accept(application));  // and never reads
  }
  auto& reads = mesh.open(application.addr.to_string());
  Fd reader = world.accept(application);
  reads.out = pattern(100'000);
  for (auto* stream : streams) stream->out = pattern(64 << 20);
  for (auto* stream : streams) mesh.connection->session().resume(*stream);
  mesh.connection->session().resume(reads);
  mesh.connection->schedule_flush();
  auto closed = [&] {
    return std::ranges::count_if(streams, [](auto* stream) { return stream->closed > 0; });
  };
  Received received;
  world.until([&] { return received.take(reader), received.text.size() == 100'000 && closed() > 0; });
  turns(world.worker.reactor, 20);
  CHECK(closed() < 4);
  CHECK(world.worker.overload.held.bytes() <= 600 * 1024);
  CHECK(world.worker.overload.held.bytes() > 0);
  CHECK(world.total(Direction::inbound, Path::hbone, Reason::OVER_LIMIT) == static_cast<uint64_t>(closed()));
  CHECK(mesh.closed == 0);
  servers.clear();
  world.until([&] { return world.worker.open_connections() == 1; });
  CHECK(world.worker.overload.held.bytes() == 0);
  CHECK(world.worker.find_pod(kServerPod)->held_bytes.bytes() == 0);
}

TEST_CASE("a tunnel whose peer does not read is among what is ended for memory") {
  World world({.descriptor_limit = 100'000, .seed = 1, .held_limit = 64 * 1024});
  Listening application;
  MeshClient mesh(world, {.apart = true, .socket_buffer = 4096});
  auto& stream = mesh.open(application.addr.to_string());
  world.until([&] { return mesh.reactor.run_once(milliseconds(0)), stream.status == 200; });
  Fd server = application.accept();
  // From here on the peer sleeps.
  auto text = pattern(1 << 20);
  bool reset = false;
  world.until([&] {
    ssize_t count = ::send(server.get(), text.data(), text.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    return reset = reset || (count < 0 && errno == ECONNRESET);
  });
  CHECK(world.total(Direction::inbound, Path::hbone, Reason::OVER_LIMIT) > 0);
  CHECK(world.worker.overload.held.bytes() == 0);
}

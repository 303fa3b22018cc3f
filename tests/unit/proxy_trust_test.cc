// What a worker ends, and lets end, when identities, roots and certificates change under its connections; and
// peers that never finish proving who they are.
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

struct Waiter final : upstream::TunnelWaiter {
  void on_tunnel(http::HboneConnection&) override {}
  void on_no_tunnel(const Error&) override {}
};

}  // namespace

TEST_CASE("peers that never finish their handshake give way, oldest first, and keep nobody out") {
  World world;
  Listening application;
  std::vector<Fd> silent;
  PodState& pod = *world.worker.find_pod(kServerPod);
  for (int i = 0; i < 512; ++i) {
    auto [near, far] = tcp_pair();
    InboundTunnel::begin(world.worker, pod, {std::move(far), kServerPod, kClient, kHbone});
    silent.push_back(std::move(near));
  }
  CHECK(pod.handshakes.size() == 512);
  turns(world.worker.reactor, 3);
  CHECK(world.total(Direction::inbound, Path::hbone, Reason::OVER_LIMIT) == 0);
  MeshClient mesh(world);
  auto& stream = mesh.open(application.addr.to_string());
  world.until([&] { return stream.status == 200; });
  CHECK(world.total(Direction::inbound, Path::hbone, Reason::OVER_LIMIT) == 1);
  CHECK(pod.handshakes.size() == 511);
  Received oldest, next;
  oldest.take(silent[0]);
  next.take(silent[1]);
  CHECK((oldest.ended || oldest.reset));
  CHECK_FALSE((next.ended || next.reset));
}

TEST_CASE(
    "a pod whose service account changes keeps no tunnel of its own, and those to it take no new stream") {
  World world;
  Listening application, peer;
  Waiter waiter;
  PodState& client = *world.worker.find_pod(kClientPod);
  world.worker.pool->acquire(client.pool_source(), {kClientPod, peer.addr, "default/server"}, waiter);
  world.until([&] { return world.worker.pool->size() == 1; });
  MeshClient mesh(world);
  auto& stream = mesh.open(application.addr.to_string());
  world.until([&] { return stream.status == 200; });
  world.configure(false, {}, "another");
  world.until([&] { return world.worker.pool->size() == 0; });
  CHECK(client.credential == nullptr);
  world.until([&] { return mesh.connection->draining(); });
  CHECK((stream.closed == 0 && mesh.closed == 0));
  auto& late = mesh.open(application.addr.to_string());
  world.until([&] { return late.closed == 1; });
  CHECK(late.status == 0);
}

TEST_CASE("a trust domain that is no longer ours ends its peers' tunnels at once, an alias keeps them") {
  World world;
  Listening application;
  MeshClient mesh(world);
  auto& stream = mesh.open(application.addr.to_string());
  world.until([&] { return stream.status == 200; });
  world.configure(false, {.trust_domain = "new.example", .trust_domain_aliases = {"cluster.local"}});
  turns(world.worker.reactor, 5);
  CHECK((stream.closed == 0 && mesh.closed == 0));
  world.configure(false, {.trust_domain = "new.example", .trust_domain_aliases = {}});
  world.until([&] { return stream.closed == 1 && mesh.closed == 1; });
  CHECK(world.total(Direction::inbound, Path::hbone, Reason::TRUST_DOMAIN) == 1);
}

TEST_CASE("a tunnel whose peer's certificate has run out takes no new stream and lets the open ones end") {
  World world;
  Listening application;
  MeshClient mesh(world);
  auto& stream = mesh.open(application.addr.to_string());
  world.until([&] { return stream.status == 200; });
  Fd server = world.accept(application);
  world.worker.tick();
  turns(world.worker.reactor, 5);
  CHECK_FALSE(mesh.connection->draining());
  world.clock.by = std::chrono::hours(48);
  world.worker.tick();
  world.until([&] { return mesh.connection->draining(); });
  auto& late = mesh.open(application.addr.to_string());
  world.until([&] { return late.closed == 1; });
  CHECK(late.status == 0);
  send_all(server, "still here");
  world.until([&] { return stream.in == "still here"; });
  stream.end_after = true;
  mesh.connection->session().resume(stream);
  mesh.connection->schedule_flush();
  server.reset();
  world.until([&] { return mesh.closed == 1; });
  CHECK(world.total(Direction::inbound, Path::hbone, Reason::NONE) == 1);
}

// A worker with pods and their connections: each kind of session from accept to record, and every way in
// which one, its pod or the worker itself may go while it is in the middle of something.
#include <doctest/doctest.h>
#include <poll.h>

#include <string>

#include "proxy_world.h"

using namespace nodemesh;
using namespace nodemesh::test;
using World = WorkerWorld;

TEST_CASE("a pod is found by its uid: the newer of two, and none that is gone or has become another") {
  World world;
  Worker& worker = world.worker;
  auto cookie_of = [&](const std::string& uid) {
    PodState* found = worker.find_pod_by_uid(uid);
    return found == nullptr ? 0 : found->info.cookie;
  };
  CHECK(cookie_of("client-uid") == kClientPod);
  CHECK(cookie_of("stranger-uid") == 0);
  worker.add_pod(pod(33, "client", Addr::v4(127, 0, 0, 5)), {}, {});
  CHECK(cookie_of("client-uid") == 33);
  worker.remove_pod(kClientPod);
  CHECK(cookie_of("client-uid") == 33);
  worker.add_pod(pod(33, "other", Addr::v4(127, 0, 0, 6)), {}, {});
  CHECK(cookie_of("client-uid") == 0);
  CHECK(cookie_of("other-uid") == 33);
  worker.remove_pod(33);
  CHECK(cookie_of("other-uid") == 0);
}

TEST_CASE("a same-node connection is relayed and recorded once") {
  World world;
  Listening application;
  Fd client = world.dial(application.addr);
  Fd server = world.accept(application);
  world.check_echo(client, server);
  CHECK(world.worker.open_connections() == 1);
  client.reset();
  server.reset();
  world.until([&] { return world.worker.open_connections() == 0; });
  CHECK(world.total(Direction::outbound, Path::same_node, Reason::NONE) == 1);
}

TEST_CASE("a policy that comes to deny a same-node connection resets it, and a new one is refused") {
  World world;
  Listening application;
  Fd client = world.dial(application.addr);
  world.until([&] { return world.worker.open_connections() == 1; });
  Fd server = world.accept(application);
  world.check_echo(client, server);
  world.configure(true);
  world.check_reset(client);
  world.check_reset(server);
  CHECK(world.total(Direction::outbound, Path::same_node, Reason::POLICY_REVOKED) == 1);
  Fd refused = world.dial(application.addr);
  world.check_reset(refused);
  CHECK(world.total(Direction::outbound, Path::same_node, Reason::POLICY_DENY) == 1);
  CHECK(world.worker.open_connections() == 0);
}

TEST_CASE("a plaintext connection from outside reaches the application, and nobody's port resets it") {
  World world;
  Listening application;
  Fd client = world.plaintext(application.addr);
  Fd server = world.accept(application);
  world.check_echo(client, server);
  Fd nobody = world.plaintext({Addr::v4(127, 0, 0, 1), 1});
  world.check_reset(nobody);
  CHECK(world.total(Direction::inbound, Path::plaintext, Reason::CONNECT_REFUSED) == 1);
  for (uint16_t port : {uint16_t{NM_HBONE_PORT}, kListenerPort}) {
    Fd loop = world.plaintext({kHbone.ip, port});
    world.check_reset(loop);
  }
  CHECK(world.total(Direction::inbound, Path::plaintext, Reason::LOOP) == 2);
}

TEST_CASE("a CONNECT whose bytes and end come before there is a socket is delivered whole") {
  World world;
  world.control.answers = false;
  Listening application;
  MeshClient mesh(world);
  auto& stream = mesh.open(application.addr.to_string());
  stream.out = "early";
  stream.end_after = true;
  world.until([&] { return world.worker.open_connections() == 1; });
  turns(world.worker.reactor, 10);
  CHECK(stream.closed == 0);
  world.control.answer();
  Fd server = world.accept(application);
  Received received;
  world.until([&] { return received.take(server), received.ended; });
  CHECK(received.text == "early");
  world.until([&] { return stream.status == 200; });
  send_all(server, "late");
  server.reset();
  world.until([&] { return stream.ended; });
  CHECK(stream.in == "late");
  world.until([&] { return world.worker.open_connections() == 0; });
  CHECK(world.total(Direction::inbound, Path::hbone, Reason::NONE) == 1);
}

TEST_CASE("what a peer asks wrongly is answered by its status and recorded, and the next stream is served") {
  World world;
  Listening application;
  MeshClient mesh(world);
  struct Case {
    std::string authority, method;
    int status;
    Reason reason;
  };
  for (const auto& [authority, method, status, reason] :
       {Case{"127.0.0.9:80", "CONNECT", 400, Reason::WRONG_DESTINATION},
        Case{"db:80", "CONNECT", 400, Reason::BAD_AUTHORITY},
        Case{"127.0.0.1:15008", "CONNECT", 400, Reason::LOOP},
        Case{"127.0.0.1:1", "CONNECT", 503, Reason::CONNECT_REFUSED},
        Case{"127.0.0.1:80", "GET", 400, Reason::BAD_METHOD}}) {
    CAPTURE(authority);
    auto& stream = mesh.open(authority, method);
    world.until([&] { return stream.status != 0; });
    CHECK(stream.status == status);
    CHECK(world.total(Direction::inbound, Path::hbone, reason) == 1);
  }
  auto& fine = mesh.open(application.addr.to_string());
  world.until([&] { return fine.status == 200; });
  CHECK(mesh.closed == 0);
}

TEST_CASE("a policy change ends the streams it denies and neither the tunnel nor the others") {
  World world;
  Listening application;
  MeshClient mesh(world);
  auto& stream = mesh.open(application.addr.to_string());
  world.until([&] { return stream.status == 200; });
  world.configure(true);
  world.until([&] { return stream.closed == 1; });
  CHECK(stream.error != http::H2Error::none);
  CHECK(world.total(Direction::inbound, Path::hbone, Reason::POLICY_REVOKED) == 1);
  auto& denied = mesh.open(application.addr.to_string());
  world.until([&] { return denied.status == 401; });
  world.configure(false);
  auto& again = mesh.open(application.addr.to_string());
  world.until([&] { return again.status == 200; });
  CHECK(mesh.closed == 0);
}

TEST_CASE("a pod that goes ends its connections in whatever state, and the worker says so") {
  World world;
  Listening application;
  MeshClient mesh(world);
  auto& open = mesh.open(application.addr.to_string());
  world.until([&] { return open.status == 200; });
  world.control.answers = false;
  Fd waits_for_socket = world.dial({Addr::v4(203, 0, 113, 1), 9});
  Fd waits_for_tunnel = world.dial({Addr::v4(127, 0, 0, 2), 80});
  turns(world.worker.reactor, 3);
  world.worker.remove_pod(kClientPod);
  CHECK(world.worker.find_pod(kClientPod) == nullptr);
  world.worker.remove_pod(kServerPod);
  world.until([&] { return world.control.closed.size() == 2; });
  world.check_reset(waits_for_socket);
  world.check_reset(waits_for_tunnel);
  world.until([&] { return open.closed == 1 && mesh.closed == 1; });
  CHECK(world.total(Direction::inbound, Path::hbone, Reason::POD_GONE) == 1);
  CHECK(world.total(Direction::outbound, Path::hbone, Reason::POD_GONE) == 1);
  world.control.answer();  // the warden's answer for a pod that is gone
  turns(world.worker.reactor, 3);
  Fd late = world.dial(application.addr);
  world.check_reset(late);
}

TEST_CASE("a tunnel that is still taking its leave when its pod goes is not counted for ever") {
  World world;
  auto& open = world.metrics.shard(0).tunnels_open;
  MeshClient mesh(world);
  mesh.limits.control_frames = 1'000'000;
  world.until([&] { return mesh.connection->ready(); });
  CHECK(open.value() == 1);
  auto& tunnel = world.worker.find_pod(kServerPod)->tunnels.begin()->second->connection();
  world.until([&] { return tunnel.ready(); });
  for (int i = 0; i < 3000; ++i) mesh.connection->session().ping(http::H2Ping::alive);
  mesh.connection->schedule_flush();
  world.until([&] { return !tunnel.ready(); });
  world.worker.remove_pod(kServerPod);
  world.until([&] { return world.control.closed.size() == 1; });
  CHECK(open.value() == 0);
}

TEST_CASE("a pod that is announced again while it is ending stays") {
  World world;
  Listening application;
  world.worker.remove_pod(kClientPod);
  world.worker.remove_pod(kServerPod);
  world.add_pods();
  world.until([&] { return world.control.closed.size() == 2; });
  turns(world.worker.reactor, 3);
  REQUIRE(world.worker.find_pod(kClientPod) != nullptr);
  Fd client = world.dial(application.addr);
  Fd server = world.accept(application);
  world.check_echo(client, server);
}

TEST_CASE("a worker may stop while its connections wait for sockets, tunnels and applications") {
  World world;
  Listening application;
  MeshClient mesh(world);
  auto& open = mesh.open(application.addr.to_string());
  world.until([&] { return open.status == 200; });
  world.control.answers = false;
  Fd waits_for_socket = world.dial({Addr::v4(203, 0, 113, 1), 9});
  Fd waits_for_tunnel = world.dial({Addr::v4(127, 0, 0, 2), 80});
  turns(world.worker.reactor, 3);
  mesh.connection.reset();  // it lives on the worker's reactor
  world.worker.start();
  world.worker.stop_and_join();
  world.started = true;
  Received first, second;
  first.take(waits_for_socket);
  second.take(waits_for_tunnel);
  CHECK((first.reset && second.reset));
  CHECK(world.total(Direction::outbound, Path::hbone, Reason::SHUTDOWN) == 1);
}

TEST_CASE("a tunnel that cannot be made is told to all that wait for it") {
  World world;
  Fd first = world.dial({Addr::v4(127, 0, 0, 2), 80}), second = world.dial({Addr::v4(127, 0, 0, 2), 81});
  world.check_reset(first);
  world.check_reset(second);
  CHECK(world.total(Direction::outbound, Path::hbone, Reason::CONNECT_REFUSED) == 2);
  world.until([&] { return world.worker.pool->size() == 0; });
}

TEST_CASE("a server of whom nothing is known is not sent plaintext until it is known to be outside") {
  World world;
  world.know(model::Mesh::unknown);
  Listening application(0, {kElsewhere, 0});
  Fd client = world.dial(application.addr);
  turns(world.worker.reactor, 50);  // 15008 refuses, which proves nothing
  pollfd waiting{application.fd.get(), POLLIN, 0};
  CHECK(::poll(&waiting, 1, 0) == 0);
  CHECK(world.worker.open_connections() == 1);
  world.know(model::Mesh::unknown);
  turns(world.worker.reactor, 10);
  CHECK(::poll(&waiting, 1, 0) == 0);
  world.know(model::Mesh::none);
  Fd server = world.accept(application);
  world.check_echo(client, server);
  client.reset();
  server.reset();
  world.until([&] { return world.worker.open_connections() == 0; });
  CHECK(world.total(Direction::outbound, Path::passthrough, Reason::NONE) == 1);
}

TEST_CASE("a server of whom nothing is known is reached over HBONE when it proves to be of its namespace") {
  World world;
  world.know(model::Mesh::unknown);
  Listening hbone(0, {kElsewhere, NM_HBONE_PORT}), application(0, {kElsewhere, 0});
  Fd client = world.dial(application.addr);
  world.serve_tunnel(hbone);
  Fd server = world.accept(application);
  world.check_echo(client, server);
  world.know(model::Mesh::none);  // what is proven stays
  turns(world.worker.reactor, 5);
  world.check_echo(client, server);
  client.reset();
  server.reset();
  world.until([&] { return world.worker.open_connections() == 0; });
  CHECK(world.total(Direction::outbound, Path::hbone, Reason::NONE) == 1);
}

TEST_CASE("a tunnel's stream ends when its server's new labels are not among those that may be reached") {
  World world;
  world.let_client_reach({{"app", "web"}}, {{"app", "web"}});
  Listening hbone(0, {kElsewhere, NM_HBONE_PORT}), application(0, {kElsewhere, 0});
  Fd client = world.dial(application.addr);
  world.serve_tunnel(hbone);
  Fd server = world.accept(application);
  world.check_echo(client, server);
  world.let_client_reach({{"app", "web"}}, {{"app", "db"}});
  world.check_reset(client);
  CHECK(world.total(Direction::outbound, Path::hbone, Reason::POLICY_REVOKED) == 1);
}

TEST_CASE("a server of whom nothing is known gets the tunnel that a later snapshot asks for") {
  World world;
  world.know(model::Mesh::unknown);
  Listening application(0, {kElsewhere, 0});
  Fd client = world.dial(application.addr);
  turns(world.worker.reactor, 20);  // 15008 refuses
  Listening hbone(0, {kElsewhere, NM_HBONE_PORT});
  world.know(model::Mesh::hbone);
  world.serve_tunnel(hbone);
  Fd server = world.accept(application);
  world.check_echo(client, server);
}

TEST_CASE("a server that stays unknown is refused, or sent plaintext where that is asked for") {
  World world;
  world.know(model::Mesh::unknown);
  Listening application(0, {kElsewhere, 0});
  Fd client = world.dial(application.addr);
  turns(world.worker.reactor, 20);
  world.know(model::Mesh::unknown);  // no news, so no new patience
  world.check_reset(client);
  CHECK(world.total(Direction::outbound, Path::hbone, Reason::PEER_UNKNOWN) == 1);
  world.know(model::Mesh::unknown, model::UnknownPeer::plaintext);
  client = world.dial(application.addr);
  Fd server = world.accept(application);
  world.check_echo(client, server);
}

TEST_CASE("a pod may go while its connection waits for a server to become known") {
  World world;
  world.know(model::Mesh::unknown);
  Listening hbone(0, {kElsewhere, NM_HBONE_PORT});  // accepts and says nothing
  Fd client = world.dial({kElsewhere, 80});
  turns(world.worker.reactor, 5);
  world.worker.remove_pod(kClientPod);
  world.check_reset(client);
  world.until([&] { return world.worker.open_connections() == 0; });
}

TEST_CASE("a NetworkPolicy that comes to deny ends shortcut and tunnel, and refuses new ones") {
  World world;
  Listening application;
  Fd client = world.dial(application.addr);
  Fd server = world.accept(application);
  world.check_echo(client, server);
  MeshClient mesh(world);
  auto& open = mesh.open(application.addr.to_string());
  world.until([&] { return open.status == 200; });
  world.isolate_server();
  world.check_reset(client);
  world.until([&] { return open.closed == 1; });
  CHECK(world.total(Direction::outbound, Path::same_node, Reason::POLICY_REVOKED) == 1);
  CHECK(world.total(Direction::inbound, Path::hbone, Reason::POLICY_REVOKED) == 1);
  client = world.dial(application.addr);
  world.check_reset(client);
  CHECK(world.total(Direction::outbound, Path::same_node, Reason::POLICY_NO_ALLOW) == 1);
  auto& refused = mesh.open(application.addr.to_string());
  world.until([&] { return refused.status != 0; });
  CHECK(refused.status == 401);
}

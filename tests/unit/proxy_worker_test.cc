// A worker with pods and their connections: each kind of session from accept to record, and every way in
// which one, its pod or the worker itself may go while it is in the middle of something.
#include <doctest/doctest.h>

#include <unistd.h>

#include <memory>
#include <string>
#include <vector>

#include "bpf/abi.h"
#include "io_pairs.h"
#include "proxy/inbound.h"
#include "proxy/outbound.h"
#include "proxy/worker.h"
#include "telemetry/registry.h"
#include "tls_pairs.h"

using namespace nodemesh;
using namespace nodemesh::proxy;
using namespace nodemesh::test;
using telemetry::Direction;
using telemetry::Path;

namespace {

constexpr uint64_t kClientPod = 11, kServerPod = 22;
const SockAddr kClient = *SockAddr::parse("127.0.0.5:40000");
const SockAddr kHbone = *SockAddr::parse("127.0.0.1:15008");

// Of this process alone, since its port 15008 is used.
const Addr kElsewhere =
    Addr::v4(127, 99, static_cast<uint8_t>(::getpid() >> 8), static_cast<uint8_t>(::getpid()));

// Plays the control thread and the warden: sockets come when the test lets them.
struct FakeControl final : ControlPort {
  void ask_sockets(size_t, uint64_t cookie, warden::SocketKind kind, uint32_t count) override {
    asked.push_back({cookie, kind, count});
    if (answers) answer();
  }
  void pod_closed(size_t, uint64_t cookie) override { closed.push_back(cookie); }
  Worker& worker(size_t) override { return *only; }
  size_t worker_count() const override { return 1; }
  void answer() {
    for (auto [cookie, kind, count] : std::exchange(asked, {})) {
      std::vector<Fd> sockets;
      for (uint32_t i = 0; i < count; ++i) sockets.push_back(socket_v4());
      only->post([to = only, cookie, kind, sockets = std::move(sockets)]() mutable {
        to->add_sockets(cookie, kind, std::move(sockets), Reason::NONE);
      });
    }
  }
  struct Asked {
    uint64_t cookie;
    warden::SocketKind kind;
    uint32_t count;
  };
  Worker* only = nullptr;
  bool answers = true;
  std::vector<Asked> asked;
  std::vector<uint64_t> closed;
};

warden::Pod pod(uint64_t cookie, const std::string& name, const Addr& address) {
  return {.cookie = cookie,
          .uid = name + "-uid",
          .ns = "default",
          .name = name,
          .addresses = {address},
          .enrolled = true};
}

model::Shared<model::Workload> workload(const std::string& name, const Addr& address, const std::string& node,
                                        bool strict) {
  model::Workload made{.uid = name + "-uid",
                       .ns = "default",
                       .name = name,
                       .service_account = name,
                       .identity = spiffe("default", name),
                       .node = node,
                       .addresses = {address},
                       .workload_name = name,
                       .mesh = model::Mesh::hbone,
                       .enrolled = true};
  model::WorkloadPolicy policy;
  if (strict) {
    model::Policy deny{
        {.kind = "AuthorizationPolicy", .ns = "default", .name = "nobody"}, model::Action::deny, false, {{}}};
    policy.policies.push_back({std::make_shared<const model::Policy>(std::move(deny)), {}});
  }
  made.policy = std::make_shared<const model::WorkloadPolicy>(std::move(policy));
  return std::make_shared<const model::Workload>(std::move(made));
}

struct World {
  World() {
    control.only = &worker;
    REQUIRE(worker.prepare());
    worker.set_trust(pair.ca.trust());
    configure(false);
    worker.set_credential(spiffe("default", "client"), pair.client_credential);
    worker.set_credential(spiffe("default", "server"), pair.server_credential);
    add_pods();
  }
  ~World() {
    if (started) return;
    worker.start();  // ends what is left, as the process does
    worker.stop_and_join();
  }
  void add_pods() {
    worker.add_pod(pod(kClientPod, "client", Addr::v4(127, 0, 0, 5)), {});
    worker.add_pod(pod(kServerPod, "server", Addr::v4(127, 0, 0, 1)), {});
  }
  // A pod of another node of which the snapshot knows so much.
  void know(model::Mesh mesh, model::UnknownPeer otherwise = model::UnknownPeer::hold) {
    model::SnapshotContent content{.generation = ++generation, .node = "n1"};
    content.mesh.peers = {.everyone_known = false, .unknown = otherwise};
    auto made = *workload("server", kElsewhere, "n2", false);
    made.uid = "elsewhere";
    made.mesh = mesh;
    if (mesh == model::Mesh::unknown) made.service_account.clear();
    content.workloads = {workload("client", Addr::v4(127, 0, 0, 5), "n1", false),
                         workload("server", Addr::v4(127, 0, 0, 1), "n1", false),
                         std::make_shared<const model::Workload>(std::move(made))};
    worker.set_snapshot(std::make_shared<const model::Snapshot>(std::move(content)));
  }
  // The pods of this node, with a NetworkPolicy that lets nobody to the server.
  void isolate_server() {
    model::SnapshotContent content{.generation = ++generation, .node = "n1"};
    auto server = *workload("server", Addr::v4(127, 0, 0, 1), "n1", false);
    model::NetworkPolicies network;
    network.ingress.push_back(std::make_shared<const model::NetworkPolicy>(
        model::NetworkPolicy{.origin = {.kind = "NetworkPolicy", .ns = "default", .name = "closed"}}));
    server.network = std::make_shared<const model::NetworkPolicies>(std::move(network));
    content.workloads = {workload("client", Addr::v4(127, 0, 0, 5), "n1", false),
                         std::make_shared<const model::Workload>(std::move(server))};
    worker.set_snapshot(std::make_shared<const model::Snapshot>(std::move(content)));
  }
  // What that pod's node makes of a connection to its 15008.
  void serve_tunnel(const Listening& hbone) {
    InboundTunnel::begin(worker, *worker.find_pod(kServerPod),
                         {accept(hbone), kServerPod, kClient, hbone.addr});
  }
  void configure(bool denied) {
    model::SnapshotContent content{.generation = ++generation, .node = "n1"};
    content.workloads = {workload("client", Addr::v4(127, 0, 0, 5), "n1", false),
                         workload("server", Addr::v4(127, 0, 0, 1), "n1", denied),
                         workload("remote", Addr::v4(127, 0, 0, 2), "n2", false)};
    worker.set_snapshot(std::make_shared<const model::Snapshot>(std::move(content)));
  }
  // An application of the client pod that dialled `to`; returns its end.
  Fd dial(const SockAddr& to) {
    auto [near, far] = tcp_pair();
    OutboundSession::begin(worker, {std::move(near), kClientPod, kClient, to});
    return std::move(far);
  }
  Fd plaintext(const SockAddr& to) {
    auto [near, far] = tcp_pair();
    PlaintextSession::begin(worker, *worker.find_pod(kServerPod), {std::move(near), kServerPod, kClient, to});
    return std::move(far);
  }
  uint64_t total(Direction direction, Path path, Reason reason) {
    return metrics.shard(0).total(direction, path, reason).value();
  }
  template <class Done>
  void until(Done done) {
    turn_until(worker.reactor, done);
  }
  Fd accept(const Listening& application) {
    pollfd waiting{application.fd.get(), POLLIN, 0};
    until([&] { return ::poll(&waiting, 1, 0) == 1; });
    return application.accept();
  }
  // Both ends of a connection that the worker relays.
  void check_echo(const Fd& client, const Fd& server) {
    Received at_server, at_client;
    send_all(client, "ping");
    until([&] { return at_server.take(server), at_server.text == "ping"; });
    send_all(server, "pong");
    until([&] { return at_client.take(client), at_client.text == "pong"; });
  }
  void check_reset(const Fd& fd) {
    Received received;
    until([&] { return received.take(fd), received.reset || received.ended; });
    CHECK(received.reset);
  }

  Clock clock;
  Pair pair;
  telemetry::Metrics metrics{{}, clock};
  io::Reactor admin;
  telemetry::AccessLog log{admin};
  telemetry::Denials denials;
  FakeControl control;
  Worker worker{{.descriptor_limit = 100'000, .seed = 1},
                clock,
                control,
                metrics.shard(0),
                log,
                denials,
                {"cluster.local"}};
  uint64_t generation = 0;
  bool started = false;
};

// A peer of the mesh at the server pod's 15008.
struct MeshClient final : http::HboneOwner {
  explicit MeshClient(World& of) : world(of) {
    auto [near, far] = tcp_pair();
    connection = std::make_unique<http::HboneConnection>(
        http::H2Session::Role::client, world.worker.reactor, world.worker.buffers, std::move(near),
        *world.pair.client->connect(world.pair.client_credential, world.pair.accepted, ""), *this, limits,
        times);
    REQUIRE(connection->start());
    InboundTunnel::begin(world.worker, *world.worker.find_pod(kServerPod),
                         {std::move(far), kServerPod, kClient, kHbone});
  }
  ~MeshClient() {
    connection.reset();
    streams.clear();
  }
  struct Stream final : http::H2Stream {
    void on_headers(const http::HeaderBlock& headers, bool) override { status = headers.status; }
    void on_data(std::span<const iovec> pieces, size_t) override {
      for (const auto& piece : pieces) in.append(static_cast<const char*>(piece.iov_base), piece.iov_len);
    }
    void on_end() override { ended = true; }
    Pull pull(std::span<uint8_t> buffer) override {
      size_t count = std::min(buffer.size(), out.size());
      std::copy_n(out.begin(), count, buffer.begin());
      out.erase(0, count);
      return {count, out.empty() && end_after};
    }
    void on_close(http::H2Error with, bool) override { ++closed, error = with; }
    std::string in, out;
    int status = 0, closed = 0;
    bool ended = false, end_after = false;
    http::H2Error error = http::H2Error::none;
  };
  Stream& open(const std::string& authority, std::string_view method = "CONNECT") {
    auto& stream = *streams.emplace_back(std::make_unique<Stream>());
    std::vector<http::HeaderField> fields = {{":method", method}, {":authority", authority}};
    if (method != "CONNECT") fields.push_back({":scheme", "http"}), fields.push_back({":path", "/"});
    REQUIRE(connection->session().open(stream, fields));
    connection->schedule_flush();
    return stream;
  }
  void on_hbone_request(http::HboneConnection&, int32_t, const http::HeaderBlock&, bool) override {}
  void on_hbone_handshake(http::HboneConnection&, const Error&, Monotonic::duration) override {}
  void on_hbone_draining(http::HboneConnection&) override {}
  void on_hbone_closed(http::HboneConnection&, const Error&) override { ++closed; }

  World& world;
  http::H2Limits limits;
  http::HboneTimes times;
  std::vector<std::unique_ptr<Stream>> streams;
  std::unique_ptr<http::HboneConnection> connection;
  int closed = 0;
};

}  // namespace

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
  Fd loop = world.plaintext(kHbone);
  world.check_reset(loop);
  CHECK(world.total(Direction::inbound, Path::plaintext, Reason::LOOP) == 1);
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

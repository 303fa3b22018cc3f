// A worker with a client's and a server's pod, applications on loopback, and a peer of the mesh; the control
// thread and the warden are played by the test.
#pragma once

#include <doctest/doctest.h>
#include <unistd.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "bpf/abi.h"
#include "io_pairs.h"
#include "proxy/inbound.h"
#include "proxy/outbound.h"
#include "proxy/worker.h"
#include "telemetry/registry.h"
#include "tls_pairs.h"

namespace nodemesh::test {

using namespace proxy;
using telemetry::Direction;
using telemetry::Path;

constexpr uint64_t kClientPod = 11, kServerPod = 22;
inline const SockAddr kClient = *SockAddr::parse("127.0.0.5:40000");
inline const SockAddr kHbone = *SockAddr::parse("127.0.0.1:15008");
// Of this process alone, since its port 15008 is used.
inline const Addr kElsewhere =
    Addr::v4(127, 99, static_cast<uint8_t>(::getpid() >> 8), static_cast<uint8_t>(::getpid()));
constexpr uint16_t kListenerPort = 40001;  // of some worker

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

inline warden::Pod pod(uint64_t cookie, const std::string& name, const Addr& address) {
  return {.cookie = cookie,
          .uid = name + "-uid",
          .ns = "default",
          .name = name,
          .addresses = {address},
          .enrolled = true};
}

inline model::Shared<model::Workload> workload(const std::string& name, const Addr& address,
                                               const std::string& node, bool strict,
                                               const std::string& account = "") {
  model::Workload made{.origin = {.kind = "Pod"},
                       .uid = name + "-uid",
                       .ns = "default",
                       .name = name,
                       .service_account = account.empty() ? name : account,
                       .identity = spiffe("default", account.empty() ? name : account),
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

struct WorkerWorld {
  explicit WorkerWorld(WorkerOptions with = {.descriptor_limit = 100'000, .seed = 1}) : options(with) {
    control.only = &worker;
    REQUIRE(worker.prepare());
    worker.set_trust(pair.ca.trust());
    configure(false);
    worker.set_credential(spiffe("default", "client"), pair.client_credential);
    worker.set_credential(spiffe("default", "server"), pair.server_credential);
    add_pods();
  }
  ~WorkerWorld() {
    if (started) return;
    worker.start();  // ends what is left, as the process does
    worker.stop_and_join();
  }
  void add_pods() {
    worker.add_pod(pod(kClientPod, "client", Addr::v4(127, 0, 0, 5)), {}, {});
    worker.add_pod(pod(kServerPod, "server", Addr::v4(127, 0, 0, 1)), {}, {kListenerPort});
  }
  // A pod of another node of which the snapshot knows so much.
  void know(model::Mesh mesh, model::UnknownPeer otherwise = model::UnknownPeer::hold) {
    model::SnapshotContent content{.generation = ++generation, .node = "n1"};
    content.mesh.peers = {.everyone_known = false, .unknown = otherwise};
    auto made = *workload("server", kElsewhere, "n2", false);
    made.uid = "elsewhere";
    made.origin.kind = "WorkloadSlice";
    made.mesh = mesh;
    if (mesh == model::Mesh::unknown) made.service_account = {};
    content.workloads = {workload("client", Addr::v4(127, 0, 0, 5), "n1", false),
                         workload("server", Addr::v4(127, 0, 0, 1), "n1", false),
                         std::make_shared<const model::Workload>(std::move(made))};
    worker.set_snapshot(std::make_shared<const model::Snapshot>(std::move(content)));
  }
  // A pod elsewhere with these labels, and a NetworkPolicy that lets the client to those that have `allowed`.
  void let_client_reach(const std::map<std::string, std::string>& allowed,
                        const std::map<std::string, std::string>& labels) {
    know(model::Mesh::hbone);
    auto content = worker.snapshot->content();
    content.generation = ++generation;
    auto server = *content.workloads[2];
    server.labels = labels;
    model::NetworkPeer peer{.namespaces = {server.ns}};
    for (const auto& [key, value] : allowed)
      peer.pods.push_back({.key = key, .op = model::LabelRequirement::Operator::in, .values = {value}});
    model::NetworkPolicy policy{.origin = {.kind = "NetworkPolicy", .ns = "default", .name = "some"}};
    policy.rules.push_back({.peers = std::vector{std::move(peer)}});
    model::NetworkPolicies network;
    network.egress.push_back(std::make_shared<const model::NetworkPolicy>(std::move(policy)));
    auto client = *content.workloads[0];
    client.network = std::make_shared<const model::NetworkPolicies>(std::move(network));
    content.workloads[0] = std::make_shared<const model::Workload>(std::move(client));
    content.workloads[2] = std::make_shared<const model::Workload>(std::move(server));
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
  // `account`: both pods' service account instead of their names.
  void configure(bool denied, model::MeshSettings mesh = {}, const std::string& account = "") {
    model::SnapshotContent content{.generation = ++generation, .node = "n1", .mesh = std::move(mesh)};
    content.workloads = {workload("client", Addr::v4(127, 0, 0, 5), "n1", false, account),
                         workload("server", Addr::v4(127, 0, 0, 1), "n1", denied, account),
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

  // The time of day, from where the test puts it.
  struct Ahead final : Clock {
    WallClock::time_point wall() const override { return WallClock::now() + by; }
    seconds by{0};
  } clock;
  Pair pair;
  telemetry::Metrics metrics{{}, clock};
  io::Reactor admin;
  telemetry::AccessLog log{admin};
  telemetry::Denials denials;
  FakeControl control;
  const WorkerOptions options;
  Worker worker{options, clock, control, metrics.shard(0), log, denials, {"cluster.local"}};
  uint64_t generation = 0;
  bool started = false;
};

// A peer of the mesh at the server pod's 15008.
struct MeshClient final : http::HboneOwner {
  struct As {
    bool ours = true;       // else one that speaks h2 only
    bool apart = false;     // its reactor is turned by the test alone
    int socket_buffer = 0;  // of both ends, where set
  };
  explicit MeshClient(WorkerWorld& of) : MeshClient(of, As{}) {}
  MeshClient(WorkerWorld& of, const As& as) : world(of) {
    auto [near, far] = tcp_pair();
    for (int fd : {near.get(), far.get()}) {
      if (as.socket_buffer == 0) break;
      ::setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &as.socket_buffer, sizeof as.socket_buffer);
      ::setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &as.socket_buffer, sizeof as.socket_buffer);
    }
    auto ssl = *world.pair.client->connect(world.pair.client_credential, world.pair.accepted, "");
    if (!as.ours) SSL_set_alpn_protos(ssl.get(), reinterpret_cast<const unsigned char*>("\x02h2"), 3);
    connection = std::make_unique<http::HboneConnection>(
        http::H2Session::Role::client, as.apart ? reactor : world.worker.reactor,
        as.apart ? buffers : world.worker.buffers, std::move(near), std::move(ssl), *this, limits, times);
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

  WorkerWorld& world;
  io::Reactor reactor;
  io::Buffers buffers;
  http::H2Limits limits;
  http::HboneTimes times;
  std::vector<std::unique_ptr<Stream>> streams;
  std::unique_ptr<http::HboneConnection> connection;
  int closed = 0;
};

}  // namespace nodemesh::test

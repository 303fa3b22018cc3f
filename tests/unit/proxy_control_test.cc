// The control thread with two workers and a warden that the test plays.
#include <doctest/doctest.h>

#include <fcntl.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "io_pairs.h"
#include "proxy/control.h"
#include "warden/channel.h"

using namespace nodemesh;
using namespace nodemesh::test;

namespace {

constexpr size_t kWorkers = 2;

struct Node {
  std::string path;
  Node() {
    char name[] = "/tmp/nodemesh-control-XXXXXX";
    path = ::mkdtemp(name);
    std::filesystem::create_directory(path + "/config");
  }
  ~Node() { std::filesystem::remove_all(path); }
};

struct FakeWarden final : warden::ProxyChannelEvents {
  FakeWarden(io::Reactor& reactor, const std::string& path) {
    auto made = warden::ChannelListener::create(
        reactor, path, ::geteuid(), ::getegid(), [this, &reactor](Fd socket, pid_t peer) {
          warden::ProxyChannelEvents& events = *this;
          channel = std::make_unique<warden::ProxyChannel>(reactor, events, std::move(socket), peer);
        });
    REQUIRE(made);
    listener = std::move(*made);
  }
  void on_proxy_message(warden::ProxyChannel&, warden::ProxyMessage message, std::vector<Fd>) override {
    heard.push_back(std::move(message));
  }
  void on_proxy_closed(warden::ProxyChannel&, const Error&) override { channel.reset(); }

  template <class Message>
  bool has() const {
    return std::ranges::any_of(heard, [](const auto& m) { return std::holds_alternative<Message>(m); });
  }
  void announce(uint64_t cookie) {
    Listening listening;
    std::vector<int> descriptors(kWorkers * NM_LISTENER_COUNT, listening.fd.get());
    warden::Pod pod{.cookie = cookie,
                    .uid = std::to_string(cookie),
                    .ns = "shop",
                    .name = "web",
                    .addresses = {Addr::v4(127, 0, 0, 1)},
                    .enrolled = true};
    channel->send(warden::PodAdd{warden::to_record(pod)}, descriptors);
  }

  std::vector<warden::ProxyMessage> heard;
  std::unique_ptr<warden::ProxyChannel> channel;
  std::unique_ptr<warden::ChannelListener> listener;
};

struct World {
  explicit World(kube::SourceChoice source = {}, uint32_t welcome = 0)
      : choice(source == kube::SourceChoice{} ? kube::SourceChoice{.folder = node.path + "/config"}
                                              : source) {
    REQUIRE(control.start());
    until([&] { return warden.has<warden::ReturnDone>(); });
    warden.channel->send(warden::Welcome{.flags = welcome});
    warden.channel->send(warden::Keys{});
  }
  ~World() { control.stop_workers(); }
  template <class Done>
  void until(Done done) {
    turn_until(reactor, done);
  }
  // Whatever the warden said before this has been done.
  void settle() {
    warden.channel->send(warden::PodGone{.cookie = 99});
    until([&] { return warden.has<warden::PodGoneAck>(); });
  }

  Node node;
  kube::SourceChoice choice;
  io::Reactor reactor;
  Clock clock;
  telemetry::Metrics metrics{{.shards = kWorkers}, clock};
  telemetry::AccessLog log{reactor};
  telemetry::Denials denials;
  FakeWarden warden{reactor, node.path + "/warden.sock"};
  proxy::Control control{reactor,
                         clock,
                         {.source = choice,
                          .node = "node1",
                          .run_dir = node.path,
                          .ca = {.target = {.unix_path = node.path + "/ca.sock"}},
                          .workers = kWorkers,
                          .warden_uid = ::geteuid()},
                         metrics,
                         log,
                         denials};
};

}  // namespace

TEST_CASE("a new process accepts for no pod before it knows all pods of the node") {
  World world;
  world.warden.announce(11);
  world.warden.announce(22);
  world.settle();
  CHECK_FALSE(world.warden.has<warden::TakeoverReady>());
  CHECK(world.control.listeners().empty());
  world.warden.channel->send(warden::SnapshotSent{});
  world.until([&] { return world.warden.has<warden::TakeoverReady>(); });
  CHECK(world.control.listeners().size() == 2 * NM_LISTENER_COUNT * kWorkers);
}

TEST_CASE("a new process accepts for no pod before it knows who the pods are") {
  Listening silent;  // an API server that never answers
  Node home;
  std::ofstream(home.path + "/kubeconfig")
      << "{apiVersion: v1, kind: Config, current-context: it, contexts: [{name: it, context: {cluster: it, "
         "user: it}}], "
         "users: [{name: it, user: {token: t}}], clusters: [{name: it, cluster: {server: 'https://"
      << silent.addr.to_string() << "'}}]}";
  World world({.kubeconfig = home.path + "/kubeconfig"});
  world.warden.announce(11);
  world.warden.channel->send(warden::SnapshotSent{});
  world.settle();
  CHECK_FALSE(world.warden.has<warden::TakeoverReady>());
  CHECK_FALSE(world.control.not_ready().empty());
}

TEST_CASE("a pod that comes later is accepted for at once") {
  World world;
  world.warden.channel->send(warden::SnapshotSent{});
  world.warden.announce(11);
  world.until([&] { return world.warden.has<warden::TakeoverReady>(); });
}

TEST_CASE("a pod that goes before all are known is never accepted for") {
  World world;
  world.warden.announce(11);
  world.warden.channel->send(warden::PodGone{.cookie = 11});
  world.until([&] { return world.warden.has<warden::PodGoneAck>(); });
  world.warden.heard.clear();
  world.warden.channel->send(warden::SnapshotSent{});
  world.settle();
  CHECK_FALSE(world.warden.has<warden::TakeoverReady>());
}

TEST_CASE("a process whose warden stands by for another is ready without pods") {
  World world({}, warden::Welcome::kStandby);
  world.until([&] { return world.control.not_ready().empty(); });
  CHECK_FALSE(world.warden.has<warden::StoreKeys>());
  world.warden.channel.reset();
  world.warden.heard.clear();
  world.until([&] { return world.warden.has<warden::ReturnDone>(); });
  CHECK(world.control.not_ready().empty());
  world.warden.channel->send(warden::Welcome{});
  world.until([&] { return !world.control.not_ready().empty(); });
}

TEST_CASE("a process that is told to end accepts until the next agent has the pods") {
  World world({}, warden::Welcome::kHandsOver);
  world.warden.announce(11);
  world.warden.channel->send(warden::SnapshotSent{});
  world.until([&] { return world.warden.has<warden::TakeoverReady>(); });
  bool ended = false;
  world.control.stop([&] { ended = true; });
  world.settle();
  CHECK_FALSE(world.control.listeners().empty());
  CHECK_FALSE(ended);
  world.warden.channel->send(warden::Superseded{});
  world.until([&] { return world.control.listeners().empty(); });
  world.until([&] { return ended; });
}

TEST_CASE("a process whose pods leave the mesh, or that has none, waits for no other agent") {
  World world({}, warden::Welcome::kHandsOver);
  SUBCASE("they leave") {
    world.warden.announce(11);
    world.warden.channel->send(warden::SnapshotSent{});
    world.until([&] { return world.warden.has<warden::TakeoverReady>(); });
  }
  SUBCASE("it has none") {
    world.warden.channel->send(warden::SnapshotSent{});
  }
  world.settle();
  bool ended = false;
  world.control.stop([&] { ended = true; });
  if (!world.control.listeners().empty()) {
    world.warden.channel->send(warden::PodUpdate{warden::to_record(
        {.cookie = 11, .uid = "11", .ns = "shop", .name = "web", .addresses = {Addr::v4(127, 0, 0, 1)}})});
  }
  world.until([&] { return ended; });
}

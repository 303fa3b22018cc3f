// One listener per pod, kind and worker: who gets which connection.
#include <bpf/bpf.h>
#include <sys/socket.h>

#include <array>
#include <cerrno>
#include <string>
#include <vector>

#include "bpf/world.h"
#include "doctest/doctest.h"

namespace nodemesh::test {
namespace {

const SockAddr kAny{*Addr::parse("::"), 0};

// Listeners of `workers` workers, ordered as set_listeners wants them.
struct Listeners {
  std::vector<Fd> all;
  size_t workers;

  Listeners(World& world, size_t count) : workers(count) {
    for (size_t i = 0; i < count * NM_LISTENER_COUNT; i++) all.push_back(world.proxy->listen(kAny, AF_INET6));
  }
  std::vector<int> numbers() const {
    std::vector<int> out;
    for (const Fd& fd : all) out.push_back(fd.get());
    return out;
  }
  Fd& of(nm_listener kind, size_t worker) { return all[kind * workers + worker]; }
  // Takes what waits at each worker's listener of the kind until `total` have come, and tells how many each
  // had. connect() returns with the SYN-ACK: the last ones may not be in a queue yet.
  std::vector<int> taken(nm_listener kind, int total) {
    std::vector<int> counts(workers);
    int sum = 0;
    const bool all_came = eventually([&] {
      for (size_t worker = 0; worker < workers; worker++)
        for (; !nobody_waits(of(kind, worker).get()); counts[worker]++, sum++)
          REQUIRE(accept_one(of(kind, worker).get()));
      return sum >= total;
    });
    CHECK(all_came);
    CHECK(sum == total);
    return counts;
  }
};

std::vector<Fd> connect_often(Actor& from, const char* to, int count) {
  std::vector<Fd> clients;
  for (int i = 0; i < count; i++) {
    Connected client = from.connect(at(to));
    CHECK(client.error == 0);
    clients.push_back(std::move(client.fd));
  }
  return clients;
}

TEST_CASE("connections of each kind spread over the workers' listeners, from IPv4 and IPv6") {
  World world;
  world.open();
  world.enrol();
  Listeners listeners(world, 3);
  REQUIRE(world.capture().set_listeners(world.cookie, listeners.numbers()));
  struct Case {
    Actor& from;
    const char* to;
    nm_listener kind;
  } cases[] = {{*world.app, "192.0.2.7:80", NM_LISTENER_OUTBOUND},
               {*world.app, "[2001:db8::7]:80", NM_LISTENER_OUTBOUND},
               {*world.stranger, "10.66.0.2:8080", NM_LISTENER_INBOUND},
               {*world.stranger, "[fd66::2]:8080", NM_LISTENER_INBOUND},
               {*world.stranger, "10.66.0.2:15008", NM_LISTENER_HBONE}};
  for (Case& each : cases) {
    CAPTURE(each.to);
    auto clients = connect_often(each.from, each.to, 150);
    for (int count : listeners.taken(each.kind, 150)) CHECK(count > 20);
  }
}

TEST_CASE("new listeners take over by one write each, and whoever waits at the old ones stays there") {
  World world;
  world.open();
  world.enrol();
  Listeners old(world, 2), next(world, 2);
  REQUIRE(world.capture().set_listeners(world.cookie, old.numbers()));
  auto before = connect_often(*world.app, "192.0.2.7:80", 10);
  REQUIRE(world.capture().set_listeners(world.cookie, next.numbers()));
  auto after = connect_often(*world.app, "192.0.2.7:80", 10);
  old.taken(NM_LISTENER_OUTBOUND, 10);
  next.taken(NM_LISTENER_OUTBOUND, 10);
}

TEST_CASE("when the number of workers changes nothing goes to a listener that was not named") {
  World world;
  world.open();
  world.enrol();
  Listeners four(world, 4), one(world, 1);
  REQUIRE(world.capture().set_listeners(world.cookie, four.numbers()));
  REQUIRE(world.capture().set_listeners(world.cookie, one.numbers()));
  auto clients = connect_often(*world.stranger, "10.66.0.2:8080", 40);
  one.taken(NM_LISTENER_INBOUND, 40);
  REQUIRE(world.capture().set_listeners(world.cookie, four.numbers()));
  clients = connect_often(*world.stranger, "10.66.0.2:8080", 40);
  four.taken(NM_LISTENER_INBOUND, 40);
}

TEST_CASE("a worker whose listener is gone leaves its connections to the others") {
  World world;
  world.open();
  world.enrol();
  Listeners listeners(world, 3);
  REQUIRE(world.capture().set_listeners(world.cookie, listeners.numbers()));
  listeners.of(NM_LISTENER_OUTBOUND, 0).reset();
  listeners.of(NM_LISTENER_INBOUND, 2).reset();
  CHECK(world.capture().has_listener(world.cookie, NM_LISTENER_OUTBOUND));
  auto captured = connect_often(*world.app, "192.0.2.7:80", 60);
  auto steered = connect_often(*world.stranger, "10.66.0.2:8080", 60);
  listeners.taken(NM_LISTENER_OUTBOUND, 60);
  listeners.taken(NM_LISTENER_INBOUND, 60);

  listeners.of(NM_LISTENER_OUTBOUND, 1).reset();
  listeners.of(NM_LISTENER_OUTBOUND, 2).reset();
  CHECK(eventually([&] { return !world.capture().has_listener(world.cookie, NM_LISTENER_OUTBOUND); }));
  CHECK(world.app->connect(at("192.0.2.7:80")).error == EPERM);
}

TEST_CASE("as many workers as there may be all get connections") {
  World world;
  world.open();
  world.enrol();
  Listeners listeners(world, NM_MAX_WORKERS);
  REQUIRE(world.capture().set_listeners(world.cookie, listeners.numbers()));
  for (int i = 0; i < 20; i++) connect_often(*world.stranger, "10.66.0.2:8080", 50);
  for (int count : listeners.taken(NM_LISTENER_INBOUND, 1000)) CHECK(count > 0);
}

TEST_CASE("nobody who shares a listener's port gets what is steered to it") {
  World world;
  world.open();
  world.enrol();
  // Even a listener that lets others join its group: steering goes to the socket, not to the group.
  Fd open = world.proxy->listen(kAny, AF_INET6, true);
  REQUIRE(world.capture().set_listeners(world.cookie,
                                        std::array{world.outbound.get(), open.get(), world.hbone.get()}));
  Fd thief = world.app->listen({*Addr::parse("::"), local_name(open.get()).port}, AF_INET6, true);
  Fd closer = world.app->listen({World::kPod4, local_name(open.get()).port}, AF_INET, true);
  auto clients = connect_often(*world.stranger, "10.66.0.2:8080", 100);
  for (int i = 0; i < 100; i++) REQUIRE(accept_one(open.get()));
  CHECK(nobody_waits(open.get()));
  CHECK(nobody_waits(thief.get()));
  CHECK(nobody_waits(closer.get()));
}

TEST_CASE("enrolling again, or a new address, leaves the listeners in force") {
  World world;
  world.open();
  world.enrol();
  const Addr both[] = {World::kPod4, World::kPod6};
  REQUIRE(world.capture().set_pod(world.cookie, both, NM_ENROL_OFF));
  REQUIRE(world.capture().set_pod(world.cookie, std::array{World::kPod4}, NM_ENROL_ON));
  CHECK(world.app->connect(at("192.0.2.7:80")).error == 0);
  CHECK(accept_one(world.outbound.get()));
}

TEST_CASE("listeners of another namespace, that do not listen, or without a pod are refused") {
  World world;
  world.open();
  auto refusal = [&](std::vector<int> listeners) {
    auto done = world.capture().set_listeners(world.cookie, listeners);
    return done ? std::string("accepted") : done.error().message;
  };
  Fd good = world.proxy->listen(kAny, AF_INET6);
  CHECK(refusal({good.get(), good.get(), good.get()}).find("set it before") != std::string::npos);
  world.enrol();
  Fd elsewhere = world.stranger->listen(at("10.66.0.1:7000"), AF_INET);
  CHECK(refusal({good.get(), elsewhere.get(), good.get()}).find("the socket was made in namespace") !=
        std::string::npos);
  Connected deaf = world.proxy->connect(at("127.0.0.1:1"));
  CHECK(refusal({good.get(), good.get(), deaf.fd.get()}).find("must be a TCP socket that listens") !=
        std::string::npos);
  CHECK(refusal({good.get(), good.get()}).find("2 listeners") != std::string::npos);
  CHECK(refusal({}).find("0 listeners") != std::string::npos);
}

}  // namespace
}  // namespace nodemesh::test

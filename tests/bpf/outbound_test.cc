#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <cerrno>
#include <chrono>
#include <set>

#include "bpf/world.h"
#include "doctest/doctest.h"

namespace nodemesh::test {
namespace {

uint64_t drops(World& world, nm_reason reason) {
  return world.capture().read_counters().drops[reason];
}
uint64_t counter(World& world, nm_counter which) {
  return world.capture().read_counters().counters[which];
}

void captured(World& world, const SockAddr& destination, int family) {
  CAPTURE(destination.to_string());
  Connected client = world.app->connect(destination, family);
  REQUIRE(client.error == 0);
  Fd accepted = accept_one(world.outbound.get());
  REQUIRE(accepted);
  CHECK(local_name(accepted.get()) == destination);
  CHECK(peer_name(client.fd.get()) == destination);
  CHECK(peer_name(accepted.get()) == local_name(client.fd.get()));
  CHECK(local_name(client.fd.get()).ip == (destination.ip.is_v4() ? World::kPod4 : World::kPod6));
}

TEST_CASE("an enrolled pod's connection reaches the outbound listener, which sees where it was going") {
  World world;
  world.open();
  world.enrol();
  captured(world, at("192.0.2.7:80"), AF_INET);
  captured(world, at("192.0.2.7:80"), AF_INET6);
  captured(world, at("[2001:db8::7]:443"), AF_INET6);
  captured(world, {World::kHost4, 9999}, AF_INET);
  CHECK(counter(world, NM_COUNT_CAPTURED) == 4);
  CHECK(nobody_waits(world.inbound.get()));
}

TEST_CASE(
    "a client that closes before its own ACK has made the connection at the listener is captured like "
    "others") {
  World world;
  world.open();
  world.enrol();
  int seconds = 5;  // for which a bare ACK makes no connection
  REQUIRE(::setsockopt(world.outbound.get(), IPPROTO_TCP, TCP_DEFER_ACCEPT, &seconds, sizeof seconds) == 0);
  CHECK(world.app->connect(at("192.0.2.7:80")).error == 0);  // and is closed
  Fd accepted = accept_one(world.outbound.get());
  REQUIRE(accepted);
  CHECK(local_name(accepted.get()) == at("192.0.2.7:80"));
}

TEST_CASE("multipath TCP and TCP fast open are no way around") {
  World world;
  world.open();
  world.enrol();
  Fd server = world.stranger->listen(at("10.66.0.1:7000"), AF_INET);
  Connected fast = world.app->connect_fast_open(at("10.66.0.1:7000"));
  CHECK(fast.error == 0);
  Fd accepted = accept_one(world.outbound.get());
  REQUIRE(accepted);
  CHECK(local_name(accepted.get()) == at("10.66.0.1:7000"));
  Connected multipath = world.app->connect_multipath(at("10.66.0.1:7000"));
  if (multipath.error == EPROTONOSUPPORT || multipath.error == ENOPROTOOPT) {
    MESSAGE("this kernel has no multipath TCP");
  } else {
    CHECK(multipath.error == 0);
    accepted = accept_one(world.outbound.get());
    REQUIRE(accepted);
    CHECK(local_name(accepted.get()) == at("10.66.0.1:7000"));
  }
  CHECK(nobody_waits(server.get()));
}

TEST_CASE("a connection is captured on loopback where the pod has no address of its family") {
  World world;
  world.open();
  world.enrol(std::array{World::kPod4});
  Connected client = world.app->connect(at("[2001:db8::7]:443"));
  REQUIRE(client.error == 0);
  Fd accepted = accept_one(world.outbound.get());
  REQUIRE(accepted);
  CHECK(local_name(accepted.get()) == at("[2001:db8::7]:443"));
  CHECK(peer_name(client.fd.get()) == at("[2001:db8::7]:443"));
}

TEST_CASE("loopback and the pod's own addresses are left alone") {
  World world;
  world.open();
  world.enrol();
  Fd server = world.app->listen(at("[::]:8080"), AF_INET6);
  for (const char* own : {"127.0.0.1:8080", "127.8.9.1:8080", "[::1]:8080", "10.66.0.2:8080",
                          "[fd66::2]:8080", "0.0.0.0:8080"}) {
    CAPTURE(own);
    Connected client = world.app->connect(at(own));
    REQUIRE(client.error == 0);
    Fd accepted = accept_one(server.get());
    REQUIRE(accepted);
    CHECK(local_name(accepted.get()).port == 8080);
    CHECK(peer_name(client.fd.get()).port == 8080);
  }
  CHECK(world.app->connect(at("10.66.0.2:8080"), AF_INET6).error == 0);
  CHECK(nobody_waits(world.outbound.get()));
  CHECK(nobody_waits(world.inbound.get()));
  CHECK(counter(world, NM_COUNT_CAPTURED) == 0);
}

TEST_CASE("a link-local destination is left to its interface, and its neighbours in number are captured") {
  World world;
  world.open();
  world.enrol();
  // Without an interface the kernel itself refuses; a captured connection would be made.
  CHECK(world.app->connect(at("[fe80::9]:80")).error == EINVAL);
  CHECK(world.app->connect(at("[febf:ffff::9]:80")).error == EINVAL);
  CHECK(counter(world, NM_COUNT_CAPTURED) == 0);
  captured(world, at("[fe00::9]:80"), AF_INET6);
  captured(world, at("[fec0::9]:80"), AF_INET6);
  captured(world, at("169.254.169.254:80"), AF_INET);
}

TEST_CASE("a socket that was captured may connect to loopback afterwards") {
  World world;
  world.open();
  world.enrol();
  Fd server = world.app->listen(at("0.0.0.0:8080"), AF_INET);
  Connected client = world.app->connect(at("192.0.2.7:80"));
  REQUIRE(client.error == 0);
  REQUIRE(accept_one(world.outbound.get()));
  sockaddr none{.sa_family = AF_UNSPEC, .sa_data = {}};
  REQUIRE(::connect(client.fd.get(), &none, sizeof(none)) == 0);
  REQUIRE(world.app->reconnect(client.fd.get(), at("127.0.0.1:8080"), AF_INET) == 0);
  CHECK(accept_one(server.get()));
  CHECK(peer_name(client.fd.get()) == at("127.0.0.1:8080"));
  CHECK(nobody_waits(world.outbound.get()));
}

TEST_CASE("without a listener an enrolled pod's connections are refused, or pass where the node fails open") {
  World world;
  world.open();
  world.enrol();
  Fd server = world.stranger->listen(at("10.66.0.1:7000"), AF_INET);
  world.outbound.reset();
  REQUIRE(eventually([&] { return !world.capture().has_listener(world.cookie, NM_LISTENER_OUTBOUND); }));

  CHECK(world.app->connect(at("10.66.0.1:7000")).error == EPERM);
  CHECK(drops(world, NM_REASON_NO_LISTENER) == 1);
  CHECK(nobody_waits(server.get()));

  REQUIRE(world.capture().set_flags(true, false));
  CHECK(world.app->connect(at("10.66.0.1:7000")).error == 0);
  CHECK(accept_one(server.get()));
  CHECK(counter(world, NM_COUNT_FAIL_OPEN_PASSED) == 1);
}

TEST_CASE(
    "an unknown pod is refused while the warden beats, passes when it is gone, and is refused then too if "
    "strict") {
  World world;
  world.open();
  Fd server = world.stranger->listen(at("10.66.0.1:7000"), AF_INET);
  Fd own = world.app->listen(at("127.0.0.1:8080"), AF_INET);
  CHECK(world.app->connect(at("10.66.0.1:7000")).error == EPERM);
  CHECK(drops(world, NM_REASON_POD_UNKNOWN) == 1);
  CHECK(world.app->connect(at("127.0.0.1:8080")).error == 0);

  REQUIRE(world.capture().set_cgroup(kernel::cgroup_id(world.container_cgroup).value(), NM_ENROL_OFF));
  CHECK(world.app->connect(at("10.66.0.1:7000")).error == 0);
  REQUIRE(world.capture().remove_cgroup(kernel::cgroup_id(world.container_cgroup).value()));
  CHECK(world.app->connect(at("10.66.0.1:7000")).error == EPERM);
}

TEST_CASE("a cgroup's enrolment is found one, two and three levels below kubepods, and nowhere else") {
  World world;
  world.open();
  Fd server = world.stranger->listen(at("10.66.0.1:7000"), AF_INET);
  for (const std::string& level : {world.kubepods + "/burstable", world.pod_cgroup, world.container_cgroup}) {
    CAPTURE(level);
    const uint64_t id = kernel::cgroup_id(level).value();
    REQUIRE(world.capture().set_cgroup(id, NM_ENROL_OFF));
    CHECK(world.app->connect(at("10.66.0.1:7000")).error == 0);
    REQUIRE(world.capture().set_cgroup(id, NM_ENROL_ON));
    CHECK(world.app->connect(at("10.66.0.1:7000")).error == EPERM);
    REQUIRE(world.capture().remove_cgroup(id));
  }
  REQUIRE(world.capture().set_cgroup(kernel::cgroup_id(world.kubepods).value(), NM_ENROL_OFF));
  CHECK(world.app->connect(at("10.66.0.1:7000")).error == EPERM);
}

TEST_CASE("the pod's entry decides as soon as it exists, so that enrolling is one write") {
  World world;
  world.open();
  world.enrol();
  Fd server = world.stranger->listen(at("10.66.0.1:7000"), AF_INET);
  const Addr both[] = {World::kPod4, World::kPod6};
  REQUIRE(world.capture().set_pod(world.cookie, both, NM_ENROL_OFF));
  Connected direct = world.app->connect(at("10.66.0.1:7000"));
  CHECK(direct.error == 0);
  CHECK(accept_one(server.get()));
  REQUIRE(world.capture().set_pod(world.cookie, both, NM_ENROL_ON));
  captured(world, at("10.66.0.1:7000"), AF_INET);
  // A process from elsewhere that enters the pod's namespace is in the pod.
  Actor intruder(world.directory + "/kubepods/podagent", world.pod.get());
  CHECK(intruder.connect(at("10.66.0.1:7000")).error == 0);
  CHECK(accept_one(world.outbound.get()));
  CHECK(nobody_waits(server.get()));
}

TEST_CASE("the agent's own connections are not captured") {
  World world;
  world.open();
  world.enrol();
  Fd server = world.stranger->listen(at("10.66.0.1:7000"), AF_INET);
  CHECK(world.proxy->connect(at("10.66.0.1:7000")).error == 0);
  CHECK(accept_one(server.get()));
  CHECK(nobody_waits(world.outbound.get()));

  Fd application = world.app->listen(at("0.0.0.0:8080"), AF_INET);
  Connected upstream = world.proxy->connect(at("10.66.0.2:8080"));
  CHECK(upstream.error == 0);
  Fd accepted = accept_one(application.get());
  REQUIRE(accepted);
  CHECK(local_name(accepted.get()) == at("10.66.0.2:8080"));
  CHECK(peer_name(upstream.fd.get()) == at("10.66.0.2:8080"));
}

TEST_CASE("two thousand connections to several destinations all keep theirs") {
  World world;
  world.open();
  world.enrol();
  constexpr int kConnections = 2000;
  const SockAddr destinations[] = {at("192.0.2.7:80"), at("192.0.2.8:80"), at("[2001:db8::7]:443"),
                                   at("198.51.100.1:5432"), at("192.0.2.7:81")};
  int wrong = 0;
  std::set<SockAddr> seen;
  for (int i = 0; i < kConnections; i++) {
    const SockAddr& destination = destinations[i % std::size(destinations)];
    Connected client = world.app->connect(destination);
    REQUIRE(client.error == 0);
    Fd accepted = accept_one(world.outbound.get());
    REQUIRE(accepted);
    wrong += local_name(accepted.get()) != destination || peer_name(client.fd.get()) != destination;
    seen.insert(local_name(accepted.get()));
  }
  CHECK(wrong == 0);
  CHECK(seen.size() == std::size(destinations));
  CHECK(counter(world, NM_COUNT_CAPTURED) == kConnections);
}

}  // namespace
}  // namespace nodemesh::test

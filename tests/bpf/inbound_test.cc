#include <bpf/bpf.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <string>
#include <vector>

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

TEST_CASE(
    "connections from outside reach the inbound listener, those to 15008 the HBONE listener, with their "
    "destination") {
  World world;
  world.open();
  world.enrol();
  struct Case {
    const char* destination;
    int listener;
  } cases[] = {{"10.66.0.2:8080", world.inbound.get()},
               {"[fd66::2]:8080", world.inbound.get()},
               {"10.66.0.2:1", world.inbound.get()},
               {"10.66.0.2:15008", world.hbone.get()},
               {"[fd66::2]:15008", world.hbone.get()}};
  for (const Case& each : cases) {
    CAPTURE(each.destination);
    Connected client = world.stranger->connect(at(each.destination));
    REQUIRE(client.error == 0);
    Fd accepted = accept_one(each.listener);
    REQUIRE(accepted);
    CHECK(local_name(accepted.get()) == at(each.destination));
    CHECK(peer_name(accepted.get()) == local_name(client.fd.get()));
  }
  CHECK(counter(world, NM_COUNT_STEERED_INBOUND) == 3);
  CHECK(counter(world, NM_COUNT_STEERED_HBONE) == 2);
  CHECK(nobody_waits(world.outbound.get()));
}

TEST_CASE("an application that listens itself gets nothing from outside, but all that the proxy brings") {
  World world;
  world.open();
  world.enrol();
  Fd application = world.app->listen(at("[::]:8080"), AF_INET6);
  CHECK(world.stranger->connect(at("10.66.0.2:8080")).error == 0);
  CHECK(accept_one(world.inbound.get()));
  CHECK(nobody_waits(application.get()));
  CHECK(world.proxy->connect(at("10.66.0.2:8080")).error == 0);
  CHECK(accept_one(application.get()));
}

TEST_CASE("the proxy's connection to the application passes with a client's address borrowed") {
  World world;
  world.open();
  world.enrol();
  Fd application = world.app->listen(at("0.0.0.0:8080"), AF_INET);
  const SockAddr borrowed = at("10.66.0.9:45002");
  Connected upstream = world.proxy->connect(at("10.66.0.2:8080"), AF_INET, borrowed);
  CHECK(upstream.error == 0);
  Fd accepted = accept_one(application.get());
  REQUIRE(accepted);
  CHECK(peer_name(accepted.get()) == borrowed);
  CHECK(nobody_waits(world.inbound.get()));
}

TEST_CASE("what the proxy published for a refused connection does not let a stranger through afterwards") {
  World world;
  world.open();
  world.enrol();
  // The proxy borrows the stranger's address and port, as it does to keep a client's address.
  const SockAddr source = at("10.66.0.9:45000");
  Connected refused = world.proxy->connect(at("10.66.0.2:8080"), AF_INET, source);
  CHECK(refused.error == ECONNREFUSED);
  refused.fd.reset();
  Fd application = world.app->listen(at("0.0.0.0:8080"), AF_INET);
  CHECK(world.stranger->connect(at("10.66.0.2:8080"), AF_INET, source).error == 0);
  CHECK(accept_one(world.inbound.get()));
  CHECK(nobody_waits(application.get()));
}

TEST_CASE("a pod that is not enrolled is not steered, and enrolling needs one write") {
  World world;
  world.open();
  world.enrol();
  const Addr both[] = {World::kPod4, World::kPod6};
  Fd application = world.app->listen(at("[::]:8080"), AF_INET6);
  REQUIRE(world.capture().set_pod(world.cookie, both, NM_ENROL_OFF));
  CHECK(world.stranger->connect(at("10.66.0.2:8080")).error == 0);
  CHECK(accept_one(application.get()));
  CHECK(world.stranger->connect(at("10.66.0.2:15008")).error == ECONNREFUSED);
  REQUIRE(world.capture().set_pod(world.cookie, both, NM_ENROL_ON));
  CHECK(world.stranger->connect(at("10.66.0.2:8080")).error == 0);
  CHECK(accept_one(world.inbound.get()));
  CHECK(nobody_waits(application.get()));
}

TEST_CASE(
    "without a listener connections from outside are dropped and counted, or pass where the node fails "
    "open") {
  World world;
  world.open();
  world.enrol();
  Fd application = world.app->listen(at("[::]:8080"), AF_INET6);
  REQUIRE(world.capture().clear_listeners(world.cookie));
  CHECK(world.stranger->connect_in_vain(at("10.66.0.2:8080")) != 0);
  CHECK(drops(world, NM_REASON_NO_LISTENER) >= 1);
  CHECK(nobody_waits(application.get()));
  REQUIRE(world.capture().set_flags(true, false));
  CHECK(world.stranger->connect(at("10.66.0.2:8080")).error == 0);
  CHECK(accept_one(application.get()));
  CHECK(counter(world, NM_COUNT_FAIL_OPEN_PASSED) >= 1);
}

TEST_CASE("kubelet's probe reaches the application, and only to a probe port and only from kubelet") {
  World world;
  world.open();
  world.enrol();
  Fd application = world.app->listen(at("[::]:8080"), AF_INET6);
  REQUIRE(world.capture().set_probe(at("10.66.0.2:8080")));
  REQUIRE(world.capture().set_probe(at("[fd66::2]:8080")));
  CHECK(world.kubelet_process->connect(at("10.66.0.2:8080")).error == 0);
  CHECK(accept_one(application.get()));
  CHECK(world.kubelet_process->connect(at("[fd66::2]:8080")).error == 0);
  CHECK(accept_one(application.get()));
  CHECK(counter(world, NM_COUNT_PROBE_PASSED) == 2);

  CHECK(world.kubelet_process->connect(at("10.66.0.2:8081")).error == 0);
  CHECK(accept_one(world.inbound.get()));
  CHECK(world.stranger->connect(at("10.66.0.2:8080")).error == 0);
  CHECK(accept_one(world.inbound.get()));
  CHECK(nobody_waits(application.get()));

  REQUIRE(world.capture().clear_probe(at("10.66.0.2:8080")));
  CHECK(world.kubelet_process->connect(at("10.66.0.2:8080")).error == 0);
  CHECK(accept_one(world.inbound.get()));
}

TEST_CASE("what a failed probe published does not let a stranger with its address and port through") {
  World world;
  world.open();
  world.enrol();
  REQUIRE(world.capture().set_probe(at("10.66.0.2:8080")));
  const SockAddr source = at("10.66.0.1:45001");
  Connected refused = world.kubelet_process->connect(at("10.66.0.2:8080"), AF_INET, source);
  CHECK(refused.error == ECONNREFUSED);
  refused.fd.reset();
  Fd application = world.app->listen(at("0.0.0.0:8080"), AF_INET);
  CHECK(world.stranger->connect(at("10.66.0.2:8080"), AF_INET, source).error == 0);
  CHECK(accept_one(world.inbound.get()));
  CHECK(nobody_waits(application.get()));
}

TEST_CASE("nothing stays published once a connection was accepted") {
  World world;
  world.open();
  world.enrol();
  Fd published(
      ::bpf_obj_get((world.pin_dir + "/v" + std::to_string(NM_ABI_VERSION) + "/maps/published").c_str()));
  REQUIRE(published);
  nm_tuple tuple;
  auto empty = [&] { return ::bpf_map_get_next_key(published.get(), nullptr, &tuple) != 0; };
  Fd application = world.app->listen(at("0.0.0.0:8080"), AF_INET);
  REQUIRE(world.capture().set_probe(at("10.66.0.2:8080")));

  // Held open: a closing end would have the state callback withdraw the entry.
  Connected client = world.app->connect(at("192.0.2.7:80"));
  Fd at_proxy = accept_one(world.outbound.get());
  CHECK(at_proxy);
  CHECK(empty());
  Connected upstream = world.proxy->connect(at("10.66.0.2:8080"));
  Fd at_application = accept_one(application.get());
  CHECK(at_application);
  CHECK(empty());
  Connected probe = world.kubelet_process->connect(at("10.66.0.2:8080"));
  Fd probed = accept_one(application.get());
  CHECK(probed);
  CHECK(empty());
}

TEST_CASE("a probe on its way to another pod does not let its source through here") {
  World world;
  world.open();
  world.enrol();
  Fd application = world.app->listen(at("0.0.0.0:8080"), AF_INET);
  Fd published(
      ::bpf_obj_get((world.pin_dir + "/v" + std::to_string(NM_ABI_VERSION) + "/maps/published").c_str()));
  const SockAddr source = at("10.66.0.1:45002");
  nm_tuple tuple{.sport = source.port, .dport = 8080};
  std::ranges::copy(source.ip.bytes, tuple.src);
  nm_origin origin{.dport = 8080, .kind = NM_KIND_PROBE};
  std::ranges::copy(at("10.66.0.3:8080").ip.bytes, origin.dst);
  REQUIRE(::bpf_map_update_elem(published.get(), &tuple, &origin, BPF_ANY) == 0);
  CHECK(world.stranger->connect(at("10.66.0.2:8080"), AF_INET, source).error == 0);
  CHECK(accept_one(world.inbound.get()));
  CHECK(nobody_waits(application.get()));
}

TEST_CASE("a stranger who connects to the port of a listener is not taken for captured") {
  World world;
  world.open();
  world.enrol();
  const uint16_t port = local_name(world.outbound.get()).port;
  CHECK(world.stranger->connect({World::kPod4, port}).error == 0);
  CHECK(accept_one(world.inbound.get()));
  CHECK(nobody_waits(world.outbound.get()));
}

TEST_CASE(
    "an accepted probe takes away what was published for it, and not what is on its way to another pod") {
  World world;
  world.open();
  world.enrol();
  Fd application = world.app->listen(at("0.0.0.0:8080"), AF_INET);
  Fd published(
      ::bpf_obj_get((world.pin_dir + "/v" + std::to_string(NM_ABI_VERSION) + "/maps/published").c_str()));
  const SockAddr source = at("10.66.0.1:45003");
  nm_tuple tuple{.sport = source.port, .dport = 8080};
  std::ranges::copy(source.ip.bytes, tuple.src);
  auto accepted_while_under_way_to = [&](const char* destination) {
    nm_origin origin{.dport = 8080, .kind = NM_KIND_PROBE};
    std::ranges::copy(at(destination).ip.bytes, origin.dst);
    REQUIRE(::bpf_map_update_elem(published.get(), &tuple, &origin, BPF_ANY) == 0);
    Connected client = world.stranger->connect(at("10.66.0.2:8080"), AF_INET, source);
    CHECK(client.error == 0);
    // connect() returns with the SYN-ACK; accept() only when the programs have seen the connection
    // established.
    Fd accepted;
    CHECK(eventually([&] {
      for (int listener : {application.get(), world.inbound.get()})
        if (!nobody_waits(listener)) accepted = accept_one(listener);
      return bool(accepted);
    }));
    const bool kept = ::bpf_map_lookup_elem(published.get(), &tuple, &origin) == 0;
    const linger abort{1, 0};  // or TIME_WAIT would keep the source
    ::setsockopt(client.fd.get(), SOL_SOCKET, SO_LINGER, &abort, sizeof(abort));
    return kept;
  };
  CHECK(accepted_while_under_way_to("10.66.0.3:8080"));
  CHECK_FALSE(accepted_while_under_way_to("10.66.0.2:8080"));
}

}  // namespace
}  // namespace nodemesh::test

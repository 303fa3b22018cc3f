// What a destination is, whether and how to go there, and which CONNECT authorities are taken: tables of
// values.
#include <doctest/doctest.h>

#include "bpf/abi.h"
#include "proxy/decide.h"

using namespace nodemesh;
using namespace nodemesh::proxy;

namespace {

model::Shared<model::Workload> workload(const std::string& name, const Addr& address, const std::string& node,
                                        model::Mesh mesh) {
  model::Workload made{
      .uid = name + "-uid", .ns = "shop", .name = name, .service_account = name, .node = node};
  made.identity = model::spiffe_id("cluster.local", "shop", name);
  made.addresses = {address};
  made.mesh = mesh;
  made.policy = std::make_shared<const model::WorkloadPolicy>();
  return std::make_shared<const model::Workload>(std::move(made));
}

struct World {
  model::Shared<model::Workload> here = workload("here", Addr::v4(10, 0, 1, 1), "n1", model::Mesh::hbone),
                                 there = workload("there", Addr::v4(10, 0, 2, 1), "n2", model::Mesh::hbone),
                                 plain = workload("plain", Addr::v4(10, 0, 2, 2), "n2", model::Mesh::none),
                                 unknown =
                                     workload("unknown", Addr::v4(10, 0, 3, 3), "n3", model::Mesh::unknown);
  std::shared_ptr<const model::Snapshot> snapshot = make();
  upstream::Balancer balancer{1};

  std::shared_ptr<const model::Snapshot> make() const {
    model::Service service{
        .ns = "shop", .name = "db", .host = "db.shop.svc.cluster.local", .vips = {Addr::v4(10, 96, 0, 1)}};
    model::ServicePort port{.name = "sql", .port = 5432};
    port.endpoints.push_back({.address = Addr::v4(10, 0, 2, 1), .port = 15432, .workload = there});
    port.usable_v4 = 1;
    service.ports = {port, {.name = "empty", .port = 81}};
    model::SnapshotContent content{.generation = 1, .node = "n1"};
    content.workloads = {here, plain, there, unknown};
    content.services = {std::make_shared<const model::Service>(std::move(service))};
    return std::make_shared<const model::Snapshot>(std::move(content));
  }
  Result<OutboundDecision> decide(std::string_view dialled) {
    auto destination = identify_destination(*snapshot, *SockAddr::parse(dialled));
    if (!destination) return std::unexpected(destination.error());
    return decide_outbound(*snapshot, *destination, Addr::v4(10, 0, 1, 9), balancer);
  }
};

}  // namespace

TEST_CASE("a destination is a Service's port, a pod with the Service it belongs to, or a stranger") {
  World world;
  auto vip = identify_destination(*world.snapshot, *SockAddr::parse("10.96.0.1:5432"));
  REQUIRE(vip);
  CHECK(vip->service->name == "db");
  CHECK(vip->port->port == 5432);
  CHECK(vip->workload == nullptr);
  auto pod = identify_destination(*world.snapshot, *SockAddr::parse("10.0.2.1:15432"));
  CHECK(pod->workload == world.there);
  CHECK(pod->service->name == "db");
  CHECK(pod->port == nullptr);
  auto stranger = identify_destination(*world.snapshot, *SockAddr::parse("203.0.113.7:443"));
  CHECK((stranger->workload == nullptr && stranger->service == nullptr && stranger->port == nullptr));
  auto wrong = identify_destination(*world.snapshot, *SockAddr::parse("10.96.0.1:5433"));
  REQUIRE(!wrong);
  CHECK(wrong.error().reason == Reason::NO_ROUTE);
  CHECK(wrong.error().message.find("shop/db") != std::string::npos);
}

TEST_CASE("the way to a destination follows from what is known of it") {
  World world;
  struct Case {
    std::string_view dialled, target;
    Transport transport;
  };
  for (auto [dialled, target, transport] :
       {Case{"10.96.0.1:5432", "10.0.2.1:15432", Transport::hbone},
        Case{"10.0.2.1:9", "10.0.2.1:9", Transport::hbone},
        Case{"10.0.1.1:80", "10.0.1.1:80", Transport::same_node},
        Case{"10.0.2.2:80", "10.0.2.2:80", Transport::passthrough},
        Case{"203.0.113.7:443", "203.0.113.7:443", Transport::passthrough}}) {
    CAPTURE(dialled);
    auto decision = world.decide(dialled);
    REQUIRE(decision);
    CHECK(decision->transport == transport);
    CHECK(decision->target.to_string() == target);
  }
}

TEST_CASE("nobody to serve is a refusal that says so") {
  World world;
  auto empty = world.decide("10.96.0.1:81");
  REQUIRE(!empty);
  CHECK(empty.error().reason == Reason::NO_ENDPOINTS);
}

TEST_CASE("who is not known to be outside is unknown, and never sent plaintext") {
  World world;
  CHECK(world.decide("10.0.3.3:80")->transport == Transport::unknown);
  auto content = world.snapshot->content();
  content.mesh.cluster_cidrs = {*Cidr::parse("10.0.0.0/8")};
  content.mesh.peers.everyone_known = false;
  world.snapshot = std::make_shared<const model::Snapshot>(std::move(content));
  CHECK(world.decide("10.0.9.9:80")->transport == Transport::unknown);
  CHECK(world.decide("203.0.113.7:443")->transport == Transport::passthrough);
  CHECK(world.decide("10.0.2.2:80")->transport == Transport::passthrough);
  CHECK(world.decide("10.0.2.1:80")->transport == Transport::hbone);
}

TEST_CASE("a workload without a policy admits nobody, one with an empty policy everybody") {
  model::Workload server{.ns = "shop", .name = "db"};
  model::PeerFacts facts{
      .source_ip = Addr::v4(10, 0, 0, 9), .destination_ip = Addr::v4(10, 0, 2, 1), .destination_port = 80};
  auto none = admit(server, facts);
  CHECK(!none.allow);
  CHECK(none.reason == Reason::POLICY_UNSUPPORTED);
  server.policy = std::make_shared<const model::WorkloadPolicy>();
  CHECK(admit(server, facts).allow);
}

TEST_CASE("an authority is the pod's own address and a port that is not the mesh's") {
  struct Case {
    std::string_view authority;
    Reason reason;
  };
  const Addr v4 = Addr::v4(10, 0, 0, 1);
  for (auto [authority, reason] : {Case{"10.0.0.1:80", Reason::NONE},
                                   Case{"10.0.0.1:1", Reason::NONE},
                                   Case{"10.0.0.1:65535", Reason::NONE},
                                   Case{"", Reason::BAD_AUTHORITY},
                                   Case{"10.0.0.1", Reason::BAD_AUTHORITY},
                                   Case{"10.0.0.1:", Reason::BAD_AUTHORITY},
                                   Case{"10.0.0.1:0", Reason::BAD_AUTHORITY},
                                   Case{"10.0.0.1:65536", Reason::BAD_AUTHORITY},
                                   Case{"10.0.0.1:80:80", Reason::BAD_AUTHORITY},
                                   Case{"user@10.0.0.1:80", Reason::BAD_AUTHORITY},
                                   Case{"db.shop.svc.cluster.local:80", Reason::BAD_AUTHORITY},
                                   Case{"10.0.0.1:80/", Reason::BAD_AUTHORITY},
                                   Case{"http://10.0.0.1:80", Reason::BAD_AUTHORITY},
                                   Case{" 10.0.0.1:80", Reason::BAD_AUTHORITY},
                                   Case{"fd00::1:80", Reason::BAD_AUTHORITY},
                                   Case{"[10.0.0.1]:80", Reason::BAD_AUTHORITY},
                                   Case{std::string_view("10.0.0.1:80\0", 12), Reason::BAD_AUTHORITY},
                                   Case{"10.0.0.2:80", Reason::WRONG_DESTINATION},
                                   Case{"127.0.0.1:80", Reason::WRONG_DESTINATION},
                                   Case{"0.0.0.0:80", Reason::WRONG_DESTINATION},
                                   Case{"[fd00::1]:80", Reason::WRONG_DESTINATION},
                                   Case{"[::1]:80", Reason::WRONG_DESTINATION},
                                   Case{"10.0.0.1:15008", Reason::LOOP},
                                   Case{"10.0.0.2:15008", Reason::WRONG_DESTINATION}}) {
    CAPTURE(authority);
    auto target = parse_connect_authority(authority, v4);
    CHECK((target ? Reason::NONE : target.error().reason) == reason);
  }
  CHECK(parse_connect_authority("[fd00::1]:80", *Addr::parse("fd00::1")));
  CHECK(!parse_connect_authority("[fd00::1%eth0]:80", *Addr::parse("fd00::1")));
}

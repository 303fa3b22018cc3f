#include <doctest/doctest.h>

#include "model/snapshot.h"

using namespace nodemesh;
using namespace nodemesh::model;

namespace {

Shared<Workload> workload(std::string name, Addr address, bool host_network = false) {
  Workload out{.origin = {.kind = "Pod"},
               .uid = "uid-" + name,
               .ns = "shop",
               .name = name,
               .addresses = {address},
               .host_network = host_network,
               .policy = std::make_shared<const WorkloadPolicy>()};
  return std::make_shared<const Workload>(std::move(out));
}

}  // namespace

TEST_CASE("a snapshot finds workloads and services by every key") {
  SnapshotContent content{.generation = 7, .node = "node1"};
  content.mesh.cluster_cidrs = {*Cidr::parse("10.244.0.0/16")};
  content.workloads = {workload("a", Addr::v4(10, 244, 1, 1)),
                       workload("host", Addr::v4(10, 244, 1, 2), true)};
  Service service{
      .ns = "shop", .name = "web", .vips = {Addr::v4(10, 96, 0, 1)}, .ports = {{.name = "http", .port = 80}}};
  content.services = {std::make_shared<const Service>(service)};
  Snapshot snapshot(content);
  CHECK(snapshot.find_workload(Addr::v4(10, 244, 1, 1))->name == "a");
  CHECK_FALSE(snapshot.find_workload(Addr::v4(10, 244, 1, 2)));
  CHECK(snapshot.find_workload("shop", "host")->host_network);
  CHECK(snapshot.find_workload_by_uid("uid-a")->name == "a");
  CHECK_FALSE(snapshot.find_workload_by_uid("uid-b"));
  CHECK_FALSE(snapshot.find_workload("nowhere", "a"));
  CHECK(snapshot.find_service("shop", "web")->name == "web");
  CHECK(snapshot.find_service(Addr::v4(10, 96, 0, 1))->name == "web");
  auto found = snapshot.find_service_port({Addr::v4(10, 96, 0, 1), 80});
  REQUIRE(found.port);
  CHECK(found.port->name == "http");
  found = snapshot.find_service_port({Addr::v4(10, 96, 0, 1), 81});
  CHECK(found.service);
  CHECK_FALSE(found.port);
  CHECK_FALSE(snapshot.find_service_port({Addr::v4(10, 96, 0, 2), 80}).service);
  CHECK(snapshot.in_cluster(Addr::v4(10, 244, 9, 9)));
  CHECK_FALSE(snapshot.in_cluster(Addr::v4(192, 0, 2, 1)));
}

TEST_CASE("connections to a pod are not counted for a Service of another namespace that names it") {
  auto pod = workload("a", Addr::v4(10, 244, 1, 1));
  auto service = [&](const char* ns, Shared<Workload> of) {
    ServicePort port{
        .name = "http", .port = 80, .endpoints = {{.address = Addr::v4(10, 244, 1, 1), .port = 8080}}};
    port.endpoints[0].workload = std::move(of);
    Service out{.ns = ns, .name = "web", .vips = {Addr::v4(10, 96, 0, ns[0] & 0xff)}, .ports = {port}};
    return std::make_shared<const Service>(std::move(out));
  };
  SockAddr endpoint{Addr::v4(10, 244, 1, 1), 8080};
  SnapshotContent content{.workloads = {pod}, .services = {service("evil", pod), service("shop", pod)}};
  CHECK(Snapshot(content).find_service_of_endpoint(endpoint)->ns == "shop");
  content.services.pop_back();
  CHECK_FALSE(Snapshot(content).find_service_of_endpoint(endpoint));
  content.services = {service("evil", nullptr)};  // of nobody known
  CHECK(Snapshot(content).find_service_of_endpoint(endpoint)->ns == "evil");
}

TEST_CASE("equality looks through shared pointers") {
  auto a = workload("a", Addr::v4(10, 0, 0, 1)), b = workload("a", Addr::v4(10, 0, 0, 1));
  CHECK(a.get() != b.get());
  CHECK(a == b);
  CHECK_FALSE(a == workload("a", Addr::v4(10, 0, 0, 2)));
  CHECK_FALSE(a == Shared<Workload>{});
  CHECK(Shared<Workload>{} == Shared<Workload>{});
  SnapshotContent one{.generation = 1, .workloads = {a}}, two{.generation = 2, .workloads = {b}};
  CHECK(one.same_content(two));
}

TEST_CASE("usable endpoints are of the dialled family, or of the other where that has none") {
  auto v4 = Addr::v4(10, 0, 0, 1), v6 = *Addr::parse("fd00::1");
  ServicePort port{
      .endpoints = {{.address = v4, .port = 1}, {.address = v6, .port = 1}, {.address = v6, .port = 2}},
      .usable_v4 = 1,
      .usable_v6 = 1};
  CHECK(port.usable(v4).size() == 1);
  CHECK(port.usable(v4)[0].address == v4);
  CHECK(port.usable(v6)[0].address == v6);
  port.endpoints.erase(port.endpoints.begin());
  port.usable_v4 = 0;
  CHECK(port.usable(v4)[0].address == v6);
  port.usable_v6 = 0;
  CHECK(port.usable(v4).empty());
}

TEST_CASE("by uid and by name nobody is found of whom only another node or an EndpointSlice speaks") {
  auto make = [](const char* kind, const char* ns, const char* node, uint8_t last) {
    return std::make_shared<const Workload>(Workload{.origin = {.kind = kind},
                                                     .uid = "u",
                                                     .ns = ns,
                                                     .name = "web",
                                                     .node = node,
                                                     .addresses = {Addr::v4(10, 0, 0, last)}});
  };
  SnapshotContent content{.node = "node1"};
  content.workloads = {make("Pod", "shop", "node1", 1), make("WorkloadSlice", "shop", "node2", 2),
                       make("EndpointSlice", "aaa", "node2", 3)};
  Snapshot snapshot(std::move(content));
  CHECK(snapshot.find_workload_by_uid("u")->node == "node1");
  CHECK(snapshot.find_workload("shop", "web")->node == "node1");
  CHECK_FALSE(snapshot.find_workload("aaa", "web"));
  CHECK(snapshot.pods().size() == 1);
  CHECK(snapshot.find_workload(Addr::v4(10, 0, 0, 3))->ns == "aaa");
}

TEST_CASE("of a stranger it is known that it is outside by evidence alone") {
  auto cidr = [](const char* text) { return *Cidr::parse(text); };
  SnapshotContent content;
  content.mesh.cluster_cidrs = {cidr("10.244.0.0/16"), cidr("10.244.3.0/24")};
  auto mesh_of = [&](const char* address) {
    return Snapshot(content).mesh_of_stranger(*Addr::parse(address));
  };
  CHECK(mesh_of("10.244.1.1") == Mesh::none);  // a folder names everybody
  content.mesh.peers = {.everyone_known = false,
                        .services = {cidr("10.96.0.0/16")},
                        .plain_ranges = {cidr("10.244.3.0/24")},
                        .node_addresses = {*Addr::parse("10.244.255.1")}};
  CHECK(mesh_of("10.244.1.1") == Mesh::unknown);
  CHECK(mesh_of("10.244.3.1") == Mesh::none);
  CHECK(mesh_of("10.244.255.1") == Mesh::none);
  CHECK(mesh_of("10.96.0.1") == Mesh::unknown);
  CHECK(mesh_of("203.0.113.1") == Mesh::none);
}

// The source that reads an API server: what it asks for, and when it tells of changes.
#include "kube/cluster.h"
#include "kube_fixtures.h"

using namespace nodemesh;
using namespace nodemesh::kube;
using namespace nodemesh::test;

namespace {

std::shared_ptr<const Decoded> read_any(const Object&, Fields& fields, Problems&) {
  fields.ignore({"spec", "status"});
  return std::make_shared<const Decoded>();
}

const Kind kKinds[] = {
    {"", "Namespace", {"v1"}, false, read_any, true},  {"", "Pod", {"v1"}, true, read_any},
    {"", "ConfigMap", {"v1"}, true, read_any},         {"", "Service", {"v1"}, true, read_any},
    {"example.com", "Policy", {"v1"}, true, read_any},
};

struct ClusterFixture : ApiFixture {
  std::map<std::string, ApiServer::Call*> open;  // by the resource's plural name
  std::vector<std::string> targets;
  bool has_policies = true, hold_services = false;
  int told = 0;
  milliseconds settle{100};
  size_t services_told = 0;
  std::unique_ptr<Cluster> cluster;

  ClusterFixture() {
    serve(true);
    server->handle = [this](ApiServer::Call& call) { on_call(call); };
  }
  ~ClusterFixture() { cluster.reset(); }

  // WatchList only: each resource begins empty.
  void on_call(ApiServer::Call& call) {
    targets.push_back(call.target);
    std::string path = call.target.substr(0, call.target.find('?'));
    std::string plural = path.substr(path.rfind('/') + 1);
    if (plural == "bad" || (plural == "policies" && !has_policies))
      return call.answer(404, "404 page not found");
    call.start(200);
    open[plural] = &call;
    if (plural != "services" || !hold_services) call.send(bookmark_json(5, true));
  }
  void start() {
    ClusterOptions options{.node = "node-1", .root_namespace = "mesh", .settle = settle};
    options.watch_times = {.first_retry = milliseconds(10), .slow_retry = seconds(600), .seed = 1};
    cluster = std::make_unique<Cluster>(reactor, clock, access(), kKinds, options);
    REQUIRE(cluster->start([this] {
      ++told;
      services_told = cluster->store().objects("Service").size();
    }));
  }
  bool asked(const std::string& text) const {
    for (const auto& target : targets) {
      if (target.find(text) != target.npos) return true;
    }
    return false;
  }
};

}  // namespace

TEST_CASE_FIXTURE(ClusterFixture, "a cluster is told once when everything is read, then change by change") {
  hold_services = true;
  settle = milliseconds(0);
  start();
  turn_until([&] { return open.contains("services") && open.size() == 6; });
  open["services"]->send(event_json("ADDED", object_json("a", 1)));
  turn_until([&] { return cluster->store().size() == 1; });
  bool answered = false;  // turns enough for a change to be told, if it were
  cluster->client()->request({.path = "/apis/bad"}, [&](Result<ApiAnswer>) { answered = true; });
  turn_until([&] { return answered; });
  CHECK_FALSE(cluster->synced());
  CHECK(cluster->troubles().size() == 1);
  CHECK(told == 0);
  open["services"]->send(bookmark_json(6, true));
  turn_until([&] { return told == 1; });
  CHECK(cluster->synced());
  CHECK(cluster->troubles().empty());
  CHECK(services_told == 1);
  open["services"]->send(event_json("ADDED", object_json("b", 7)) +
                         event_json("DELETED", object_json("a", 8)) +
                         event_json("ADDED", object_json("c", 9)));
  turn_until([&] { return told == 2; });
  CHECK(services_told == 2);
}

TEST_CASE_FIXTURE(ClusterFixture,
                  "a stream of changes without a pause is told of all the same, and not each time") {
  start();
  turn_until([&] { return told == 1; });
  int version = 10;
  turn_until([&] {
    ++version;
    open["services"]->send(event_json("ADDED", object_json("s" + std::to_string(version), version)));
    reactor.run_once(milliseconds(1));
    return told == 3;
  });
  CHECK(version > 13);
}

TEST_CASE_FIXTURE(
    ClusterFixture,
    "it asks for this node's pods only, the mesh's ConfigMap only, and metadata where that will do") {
  start();
  turn_until([&] { return told == 1; });
  CHECK(asked("/api/v1/pods?"));
  CHECK(asked("fieldSelector=spec.nodeName%3Dnode-1"));
  CHECK(asked("/api/v1/namespaces/mesh/configmaps?"));
  CHECK(asked("fieldSelector=metadata.name%3Distio"));
  CHECK(open["namespaces"]->accept.find("PartialObjectMetadata") != std::string::npos);
  CHECK(open["pods"]->accept == "application/json");
  CHECK(cluster->client()->protocol() == "h2");
  CHECK(server->accepted == 1);
}

TEST_CASE_FIXTURE(ClusterFixture, "a CRD that is installed later is read as soon as its name is seen") {
  has_policies = false;
  start();
  turn_until([&] { return told == 1; });
  CHECK(cluster->troubles().empty());
  has_policies = true;
  open["customresourcedefinitions"]->send(event_json(
      "ADDED",
      R"({"kind":"PartialObjectMetadata","metadata":{"name":"policies.example.com","uid":"u","resourceVersion":"9"}})"));
  turn_until([&] { return open.contains("policies"); });
  open["policies"]->send(event_json("ADDED", object_json("p", 10)));
  turn_until([&] { return told == 2; });
  CHECK(cluster->store().find("Policy", "shop", "p") != nullptr);
}

TEST_CASE_FIXTURE(ClusterFixture, "it says how far each kind's watch has come") {
  start();
  turn_until([&] { return told == 1; });
  auto since = reactor.now() + Monotonic::duration(1);
  CHECK_FALSE(cluster->passed("Service", since));
  open["services"]->send(bookmark_json(20));
  turn_until([&] { return cluster->passed("Service", since); });
  CHECK_FALSE(cluster->passed("Pod", since));
  CHECK(cluster->age().has_value());
}

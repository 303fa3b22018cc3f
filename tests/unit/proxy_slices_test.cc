// From a snapshot to the requests that an API server sees.
#include <nlohmann/json.hpp>

#include "kube_fixtures.h"
#include "proxy/slices.h"
#include "translate/translate.h"

using namespace nodemesh;
using namespace nodemesh::test;
using nlohmann::json;

namespace {

constexpr const char* kPath = "/apis/nodemesh.dev/v1alpha1/workloadslices";

struct SlicesFixture : ApiFixture {
  kube::Store store{translate::kinds()};
  std::unique_ptr<proxy::Slices> slices;

  SlicesFixture() {
    serve(true);
    server->handle = [](ApiServer::Call&) {};
    connect();
    slices = std::make_unique<proxy::Slices>(reactor, *client, "node1");
    store.set_file(
        "api", kube::parse_manifest("{apiVersion: v1, kind: Node, metadata: {name: node1, uid: n}}", "api"));
  }
  static model::Snapshot with(std::vector<std::pair<std::string, std::string>> pods_and_nodes) {
    model::SnapshotContent content{.generation = 1, .node = "node1"};
    uint8_t last = 1;
    for (auto& [name, node] : pods_and_nodes) {
      content.workloads.push_back(std::make_shared<const model::Workload>(
          model::Workload{.origin = {.kind = node == "node1" ? "Pod" : "WorkloadSlice"},
                          .uid = name,
                          .ns = "shop",
                          .name = name,
                          .service_account = "web",
                          .node = node,
                          .addresses = {Addr::v4(10, 0, 0, last++)},
                          .mesh = model::Mesh::hbone}));
    }
    return model::Snapshot(std::move(content));
  }
};

}  // namespace

TEST_CASE_FIXTURE(SlicesFixture, "this node's pods are posted, those of other nodes are not") {
  slices->update(store, with({{"mine", "node1"}, {"other", "node2"}}));
  turn_until([&] { return !server->calls().empty(); });
  CHECK(server->last().method == "POST");
  CHECK(server->last().target == kPath);
  CHECK(server->last().authorization == "Bearer the-token");
  auto sent = json::parse(server->last().body);
  CHECK(sent["metadata"]["name"] == "node1-0");
  CHECK(sent["metadata"]["ownerReferences"][0]["uid"] == "n");
  REQUIRE(sent["spec"]["pods"].size() == 1);
  CHECK(sent["spec"]["pods"][0]["name"] == "mine");
  sent["metadata"]["resourceVersion"] = "7";
  server->last().answer(201, sent.dump());
  turn_until([&] { return slices->publisher().settled(); });

  slices->update(store, with({}));
  turn_until([&] { return server->calls().size() == 2; });
  CHECK(server->last().method == "PUT");
  CHECK(server->last().target == std::string(kPath) + "/node1-0");
  CHECK(json::parse(server->last().body)["metadata"]["resourceVersion"] == "7");
}

TEST_CASE_FIXTURE(SlicesFixture,
                  "a server that goes away without an answer is asked again, and said to be the problem") {
  slices->update(store, with({{"mine", "node1"}}));
  turn_until([&] { return !server->calls().empty(); });
  server->last().cut();
  turn_until([&] { return !slices->publisher().problem().empty(); });
  turn_until([&] { return server->calls().size() == 2; });
  CHECK(server->last().method == "POST");
}

// NetworkPolicies as Kubernetes defines them: which flow which policy allows.
#include <doctest/doctest.h>

#include "model/network.h"
#include "model/workload.h"
#include "translate/translate.h"

using namespace nodemesh;
using namespace nodemesh::model;

namespace {

const char* kShop =
    "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {istio.io/dataplane-mode: ambient, "
    "team: "
    "a}}\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: other, labels: {team: b}}\n";

std::string pod(const std::string& ns, const std::string& name, int number) {
  return "---\napiVersion: v1\nkind: Pod\nmetadata: {name: " + name + ", namespace: " + ns +
         ", labels: {app: " + name +
         "}}\nspec: {nodeName: node1, containers: [{ports: [{name: web, "
         "containerPort: 8080}]}]}\nstatus: {podIPs: [{ip: 10.0.0." +
         std::to_string(number) + "}]}\n";
}

struct World {
  std::shared_ptr<const Snapshot> snapshot;
  explicit World(const std::string& spec) {
    kube::Store store(translate::kinds());
    store.set_file("a",
                   kube::parse_manifest(
                       kShop + pod("shop", "web", 1) + pod("shop", "client", 2) + pod("other", "client", 3) +
                           "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: p, "
                           "namespace: shop}\nspec: " +
                           spec + "\n",
                       "a"));
    auto made = translate::translate(store, nullptr, {.node = "node1"});
    for (const auto& status : made.statuses) {
      for (const auto& problem : status.problems) FAIL_CHECK(problem.to_string());
    }
    snapshot = made.snapshot;
  }
  // From a pod, or an address that is nobody's, to shop/web.
  bool ingress(const char* from, uint16_t port) {
    const auto& server = snapshot->find_workload("shop", "web");
    if (!server->network) return true;
    Addr address = *Addr::parse(from);
    return !denied_by(server->network->ingress,
                      {snapshot->find_workload(address).get(), address, server.get(), port});
  }
  bool egress(const char* to, uint16_t port) {
    const auto& client = snapshot->find_workload("shop", "client");
    if (!client->network) return true;
    Addr address = *Addr::parse(to);
    const auto& server = snapshot->find_workload(address);
    return !denied_by(client->network->egress, {server.get(), address, server.get(), port});
  }
};

constexpr const char *kWeb = "10.0.0.1", *kNear = "10.0.0.2", *kFar = "10.0.0.3", *kOutside = "203.0.113.5";

}  // namespace

TEST_CASE("a pod that no NetworkPolicy selects is open, one that is selected only to what a rule allows") {
  World open("{podSelector: {matchLabels: {app: nobody}}, ingress: []}");
  CHECK((open.ingress(kFar, 1) && open.egress(kOutside, 1)));
  World closed("{podSelector: {}}");
  CHECK_FALSE(closed.ingress(kNear, 8080));
  CHECK(closed.egress(kFar, 8080));  // Ingress alone is the default
  World sealed("{podSelector: {}, policyTypes: [Egress]}");
  CHECK(sealed.ingress(kFar, 1));
  CHECK_FALSE(sealed.egress(kWeb, 1));
  World implied("{podSelector: {}, egress: [{}]}");
  CHECK_FALSE(implied.ingress(kNear, 1));
  CHECK(implied.egress(kOutside, 1));
}

TEST_CASE("peers are pods of the policy's namespace, of selected namespaces, or ranges without exceptions") {
  World near(
      "{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {matchLabels: {app: "
      "client}}}]}]}");
  CHECK(near.ingress(kNear, 1));
  CHECK_FALSE(near.ingress(kFar, 1));
  CHECK_FALSE(near.ingress(kOutside, 1));
  World far(
      "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: "
      "other}}, podSelector: {matchExpressions: [{key: app, operator: In, values: [client, x]}]}}]}]}");
  CHECK(far.ingress(kFar, 1));
  CHECK_FALSE(far.ingress(kNear, 1));
  World teams(
      "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchExpressions: [{key: team, operator: "
      "NotIn, values: [b]}]}}]}]}");
  CHECK(teams.ingress(kNear, 1));
  CHECK_FALSE(teams.ingress(kFar, 1));
  World range(
      "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 203.0.113.0/24, except: [203.0.113.4/30]}}]}]}");
  CHECK(range.ingress("203.0.113.9", 1));
  CHECK_FALSE(range.ingress(kOutside, 1));
  CHECK_FALSE(range.ingress(kNear, 1));
  World two("{podSelector: {}, ingress: [{from: [{podSelector: {}}, {ipBlock: {cidr: 203.0.113.0/24}}]}]}");
  CHECK((two.ingress(kNear, 1) && two.ingress(kOutside, 1) && !two.ingress(kFar, 1)));
}

TEST_CASE("ports are numbers, ranges and names of the server's, and TCP alone") {
  World number("{podSelector: {}, ingress: [{ports: [{port: 80}, {port: 90, endPort: 95}]}]}");
  for (uint16_t port : {80, 90, 93, 95}) CHECK(number.ingress(kFar, port));
  for (uint16_t port : {79, 81, 89, 96}) CHECK_FALSE(number.ingress(kFar, port));
  World name("{podSelector: {}, ingress: [{ports: [{port: web, protocol: TCP}]}]}");
  CHECK(name.ingress(kFar, 8080));
  CHECK_FALSE(name.ingress(kFar, 8081));
  World datagrams("{podSelector: {}, ingress: [{ports: [{port: 80, protocol: UDP}]}]}");
  CHECK_FALSE(datagrams.ingress(kFar, 80));
  World any("{podSelector: {}, ingress: [{ports: [{protocol: TCP}]}]}");
  CHECK(any.ingress(kFar, 1));
}

TEST_CASE("a peer of whom nothing is known is selected by no labels") {
  Workload unknown{.ns = "shop", .name = "late"};
  unknown.mesh = Mesh::unknown;
  NetworkPolicy policy{.rules = {{.peers = std::vector{NetworkPeer{.namespaces = {"shop"}}}}}};
  std::vector<Shared<NetworkPolicy>> all{std::make_shared<const NetworkPolicy>(policy)};
  NetworkFlow flow{&unknown, Addr::v4(10, 0, 0, 9), nullptr, 80};
  CHECK(denied_by(all, flow) == all[0].get());
  unknown.mesh = Mesh::hbone;
  CHECK(denied_by(all, flow) == nullptr);
  CHECK(denied_by({}, flow) == nullptr);
}

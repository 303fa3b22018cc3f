// What the golden cases cannot show: reuse between generations, scale, and that a problem is told once.
#include <doctest/doctest.h>

#include <filesystem>
#include <fstream>
#include <sstream>

#include "base/clock.h"
#include "model/authorize.h"
#include "translate/status.h"
#include "translate/translate.h"

namespace fs = std::filesystem;
using namespace nodemesh;
using namespace nodemesh::translate;

namespace {

std::string shop() {
  return "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {istio.io/dataplane-mode: "
         "ambient}}\n";
}

std::string pod(int i) {
  return "---\napiVersion: v1\nkind: Pod\nmetadata: {name: p" + std::to_string(i) +
         ", namespace: shop, labels: {app: a}}\n" +
         "spec: {nodeName: node1, containers: []}\nstatus: {podIPs: [{ip: 10." + std::to_string(i / 65536) +
         "." + std::to_string(i / 256 % 256) + "." + std::to_string(i % 256) + "}]}\n";
}

std::string service(int i, const std::string& extra = "") {
  auto n = std::to_string(i);
  return "---\napiVersion: v1\nkind: Service\nmetadata: {name: s" + n +
         ", namespace: shop}\nspec: {clusterIP: 172.16." + std::to_string(i / 256) + "." +
         std::to_string(i % 256) + ", ports: [{port: 80}]" + extra + "}\n" +
         "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: s" + n +
         ", namespace: shop, labels: {kubernetes.io/service-name: s" + n +
         "}}\naddressType: IPv4\nendpoints: [{addresses: [10.0.0." + std::to_string(i % 256) +
         "]}]\nports: [{port: 8080}]\n";
}

struct Fixture {
  kube::Store store{kinds()};
  TranslateOptions options{.node = "node1"};
  Translation last;
  void set(const std::string& file, const std::string& text) {
    store.set_file(file, kube::parse_manifest(text, file));
  }
  const model::Snapshot& run() {
    last = translate::translate(store, last.snapshot, options);
    return *last.snapshot;
  }
};

}  // namespace

TEST_CASE_FIXTURE(Fixture, "nothing changed: the same snapshot, the same generation") {
  set("a", shop() + pod(1) + service(1));
  auto* first = &run();
  CHECK(first->generation() == 1);
  CHECK(&run() == first);
  set("unrelated", "# only a comment\n");
  CHECK(&run() == first);
}

TEST_CASE_FIXTURE(Fixture, "what did not change is the same object in the next generation") {
  set("a", shop());
  set("b", pod(1) + service(1));
  set("c", pod(2) + service(2));
  run();
  auto before = last.snapshot;
  set("c", pod(2) + service(2, ", publishNotReadyAddresses: true"));
  run();
  CHECK(last.snapshot->generation() == 2);
  CHECK(last.snapshot->find_workload("shop", "p1").get() == before->find_workload("shop", "p1").get());
  CHECK(last.snapshot->find_service("shop", "s1").get() == before->find_service("shop", "s1").get());
  CHECK(last.snapshot->find_service("shop", "s2").get() != before->find_service("shop", "s2").get());
}

TEST_CASE_FIXTURE(Fixture, "a policy change replaces the workloads it is for, and no others") {
  std::string other =
      "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: other}\n---\napiVersion: v1\nkind: Pod\n"
      "metadata: {name: o, namespace: other}\nspec: {containers: []}\nstatus: {podIP: 10.9.9.9}\n";
  set("a", shop() + pod(1) + other);
  run();
  auto before = last.snapshot;
  set("p",
      "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: "
      "shop}\nspec: {}\n");
  run();
  auto changed = last.snapshot->find_workload("shop", "p1");
  CHECK(changed.get() != before->find_workload("shop", "p1").get());
  CHECK(last.snapshot->find_workload("other", "o").get() == before->find_workload("other", "o").get());
  CHECK_FALSE(model::authorize(*changed->policy, {}).allow);
  CHECK(model::authorize(*before->find_workload("shop", "p1")->policy, {}).allow);
}

TEST_CASE_FIXTURE(Fixture, "enrolment follows the labels live, both ways") {
  set("a", shop());
  set("b", pod(1));
  CHECK(run().find_workload("shop", "p1")->mesh == model::Mesh::hbone);
  set("a", "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n");
  CHECK(run().find_workload("shop", "p1")->mesh == model::Mesh::none);
  set("a", shop());
  CHECK(run().find_workload("shop", "p1")->enrolled);
}

TEST_CASE_FIXTURE(Fixture, "of two Pods of one age that claim one address, the one that has it keeps it") {
  auto claim = [](const std::string& name, const std::string& uid) {
    return "---\napiVersion: v1\nkind: Pod\nmetadata: {name: " + name + ", namespace: shop, uid: " + uid +
           "}\nspec: {nodeName: node1, containers: []}\nstatus: {podIPs: [{ip: 10.0.0.9}]}\n";
  };
  auto holds = [&](const std::string& name) {
    auto found = last.snapshot->find_workload("shop", name);
    return found && found->addresses.size() == 1;
  };
  set("a", shop() + claim("m", "u1"));
  run();
  set("b", claim("a", "u2"));
  run();
  CHECK((holds("m") && !holds("a")));
  set("c", pod(1));
  run();
  CHECK((holds("m") && !holds("a")));
  set("a", shop() + claim("m", "u3"));  // another Pod of that name
  run();
  CHECK((holds("a") && !holds("m")));
}

TEST_CASE_FIXTURE(Fixture, "each problem is told once") {
  set("a", shop() + pod(1));
  run();
  auto none = last.statuses;
  CHECK(new_problems({}, none).empty());
  set("b", "apiVersion: v1\nkind: Pod\nmetadata: {name: lost, namespace: nowhere}\nspec: {containers: []}\n");
  run();
  auto once = last.statuses;
  auto told = new_problems(none, once);
  REQUIRE(told.size() == 1);
  CHECK(told[0].object == "Pod nowhere/lost");
  CHECK(told[0].problem.to_string() ==
        "b:3:35: metadata.namespace: there is no Namespace \"nowhere\"; fix: add the Namespace to the "
        "folder, or correct the name");
  run();
  CHECK(new_problems(once, last.statuses).empty());
}

TEST_CASE_FIXTURE(
    Fixture, "10,000 objects at once are read and translated within seconds, one change within a second") {
  auto start = Monotonic::now();
  set("ns", shop());
  for (int file = 0; file < 10; ++file) {
    std::string text;
    for (int i = 0; i < 400; ++i) text += pod(file * 400 + i + 1);
    for (int i = 0; i < 300; ++i) text += service(file * 300 + i);
    set("f" + std::to_string(file), text);
  }
  auto& snapshot = run();
  auto cold = std::chrono::duration_cast<milliseconds>(Monotonic::now() - start);
  CHECK(snapshot.workloads().size() == 4000);
  CHECK(snapshot.services().size() == 3000);
  start = Monotonic::now();
  set("ns2", pod(60000));
  run();
  auto warm = std::chrono::duration_cast<milliseconds>(Monotonic::now() - start);
  MESSAGE("cold ", cold.count(), " ms, one change ", warm.count(), " ms");
  CHECK(cold < seconds(50));
  CHECK(warm < seconds(10));
}

TEST_CASE_FIXTURE(Fixture,
                  "an EndpointSlice cannot make an address plaintext that is in another node's range") {
  auto node = [](const std::string& name, const std::string& range) {
    return "---\napiVersion: v1\nkind: Node\nmetadata: {name: " + name + "}\nspec: {podCIDRs: [" + range +
           "]}\n";
  };
  options.cluster = true;
  set("a",
      shop() + node("node1", "10.244.1.0/24") + node("node2", "10.244.2.0/24") +
          node("plain", "10.244.3.0/24") +
          "---\napiVersion: nodemesh.dev/v1alpha1\nkind: WorkloadSlice\nmetadata: {name: plain-0}\n"
          "spec: {node: plain, complete: true}\n"
          "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {name: s, namespace: shop}\n"
          "addressType: IPv4\nendpoints:\n"
          "- {addresses: [10.244.2.7], nodeName: plain, targetRef: {kind: Pod, name: moved}}\n"
          "- {addresses: [10.244.3.7], nodeName: plain, targetRef: {kind: Pod, name: there}}\n"
          "- {addresses: [192.168.0.7], nodeName: plain, targetRef: {kind: Pod, name: outside}}\n"
          "ports: [{port: 80}]\n");
  run();
  auto mesh = [&](const char* address) { return last.snapshot->find_workload(*Addr::parse(address))->mesh; };
  CHECK(mesh("10.244.2.7") == model::Mesh::unknown);
  CHECK(mesh("10.244.3.7") == model::Mesh::none);
  CHECK(mesh("192.168.0.7") == model::Mesh::none);  // no Node has it: the EndpointSlice is all there is
}

TEST_CASE_FIXTURE(Fixture, "the quickstart's manifests are accepted without a word") {
  auto dir = fs::path(__FILE__).parent_path().parent_path().parent_path() / "examples/quickstart";
  for (const auto& entry : fs::directory_iterator(dir)) {
    if (entry.path().extension() != ".yaml") continue;
    std::ostringstream text;
    text << std::ifstream(entry.path()).rdbuf();
    set(entry.path().filename(), text.str());
  }
  auto& snapshot = run();
  for (const auto& [object, problem] : new_problems({}, last.statuses))
    FAIL_CHECK(object, " ", problem.to_string());
  CHECK(snapshot.workloads().size() == 12);
  CHECK(snapshot.find_service("shop", "nginx")->ports.at(0).endpoints.size() == 4);
  CHECK(snapshot.find_workload("outside", "intruder")->mesh == model::Mesh::none);
}

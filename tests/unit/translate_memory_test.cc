// What a translation remembers must not be seen in its result: after any edits it is that of a translation
// which remembers nothing.
#include <doctest/doctest.h>

#include <fmt/format.h>

#include <random>

#include "kube/json.h"
#include "translate/status.h"
#include "translate/translate.h"
#include "translate/workload_slice.h"

using namespace nodemesh;
using namespace nodemesh::translate;

namespace {

constexpr int kNodes = 4, kPods = 24, kServices = 5;

class Edits {
 public:
  explicit Edits(uint32_t seed) : random_(seed) {
    put(R"({"metadata":{"name":"shop","labels":{"istio.io/dataplane-mode":"ambient"}}})", "Namespace", "v1");
    put(R"({"metadata":{"name":"other"}})", "Namespace", "v1");
    for (int n = 0; n < kNodes; ++n) node(n, "a");
  }

  kube::Store store{kinds()};

  // EndpointSlice "claim" of namespace shop: pod web-8, with this address, is on node `n`.
  void claim(int n, const std::string& address) {
    put(fmt::format(R"({{"metadata":{{"name":"claim","namespace":"shop"}},"addressType":"IPv4",)"
                    R"("endpoints":[{{"addresses":["{}"],"nodeName":"node{}",)"
                    R"("targetRef":{{"kind":"Pod","name":"web-8","namespace":"shop"}}}}],"ports":[]}})",
                    address, n),
        "EndpointSlice", "discovery.k8s.io/v1");
  }
  void unclaim() { remove("discovery.k8s.io", "EndpointSlice", "shop", "claim"); }
  // Node 1 names one pod, web-8, with these addresses.
  void speak(const std::vector<std::string>& addresses) {
    WorkloadSliceSpec spec;
    spec.node = "node1";
    spec.templates.push_back(std::make_shared<const WorkloadSliceSpec::Template>(
        WorkloadSliceSpec::Template{.ns = "shop", .service_account = "web"}));
    spec.pods.push_back({.uid = "uid-8", .name = "web-8", .mesh = true});
    for (const auto& text : addresses) spec.pods.back().addresses.push_back(*Addr::parse(text));
    put(slice_json(spec, 0, "", ""), "WorkloadSlice", "nodemesh.dev/v1alpha1");
  }

  void any() {
    switch (below(8)) {
      case 0:
        return node(below(kNodes), below(2) ? "a" : "b");
      case 1:
        return own_pod(below(4));
      case 2:
        return remove("", "Pod", "shop", fmt::format("own-{}", below(4)));
      case 3:
        return service(below(kServices));
      case 4:
        return remove("discovery.k8s.io", "EndpointSlice", "shop", fmt::format("svc{}-x", below(kServices)));
      case 5:
        return endpoints(below(kServices));
      case 6:
        return remove("nodemesh.dev", "WorkloadSlice", "", fmt::format("node{}-{}", below(kNodes), below(2)));
      default:
        return slice(below(kNodes), below(2));
    }
  }

 private:
  int below(int limit) { return static_cast<int>(random_() % static_cast<uint32_t>(limit)); }

  void put(const std::string& text, const char* kind, const char* version) {
    auto tree = kube::parse_json(text);
    REQUIRE(tree);
    store.upsert(kube::make_api_object(std::move(*tree), kind, version));
  }
  void remove(const char* group, const char* kind, const char* ns, const std::string& name) {
    store.remove({group, kind, ns, name});
  }

  // Mostly of the node's range, sometimes of another's: then somebody deceives.
  std::string address(int number) const { return fmt::format("10.244.{}.{}", number / 8, 2 + number % 8); }

  void node(int n, const char* zone) {
    put(fmt::format(R"({{"metadata":{{"name":"node{0}","labels":{{"topology.kubernetes.io/zone":"{1}"}}}},)"
                    R"("spec":{{"podCIDRs":["10.244.{0}.0/24"]}}}})",
                    n, zone),
        "Node", "v1");
  }
  void own_pod(int i) {
    put(fmt::format(R"({{"metadata":{{"name":"own-{0}","namespace":"shop","uid":"own-uid-{0}"}},)"
                    R"("spec":{{"nodeName":"node0","containers":[]}},)"
                    R"("status":{{"phase":"Running","podIPs":[{{"ip":"{1}"}}]}}}})",
                    i, address(below(12))),
        "Pod", "v1");
  }
  void service(int s) {
    put(fmt::format(
            R"({{"metadata":{{"name":"svc{0}","namespace":"shop"}},"spec":{{"clusterIPs":["10.96.0.{1}"],)"
            R"("ports":[{{"name":"http","port":80,"protocol":"TCP"}}]}}}})",
            s, 1 + below(kServices)),
        "Service", "v1");
  }
  void endpoints(int s) {
    std::string list;
    for (int e = 0; e < 4; ++e) {
      int pod = below(kPods);
      list += fmt::format(R"({}{{"addresses":["{}"],"conditions":{{"ready":{}}},"nodeName":"node{}",)"
                          R"("targetRef":{{"kind":"Pod","name":"web-{}","namespace":"shop"}}}})",
                          e ? "," : "", address(pod), below(4) ? "true" : "false",
                          below(6) ? pod / 8 : below(kNodes), pod);
    }
    put(fmt::format(
            R"({{"metadata":{{"name":"svc{0}-x","namespace":"{2}",)"
            R"("labels":{{"kubernetes.io/service-name":"svc{0}"}}}},"addressType":"IPv4","endpoints":[{1}],)"
            R"("ports":[{{"name":"http","port":8080,"protocol":"TCP"}}]}})",
            s, list, below(8) ? "shop" : "other"),
        "EndpointSlice", "discovery.k8s.io/v1");
  }
  void slice(int n, int number) {
    WorkloadSliceSpec spec;
    spec.node = fmt::format("node{}", n);
    spec.complete = number == 0 && below(2);
    spec.templates.push_back(std::make_shared<const WorkloadSliceSpec::Template>(WorkloadSliceSpec::Template{
        .ns = "shop", .service_account = below(5) ? "web" : "api", .labels = {{"app", "web"}}}));
    for (int i = 0; i < below(4); ++i) {
      int pod = below(10) ? n * 8 + number * 4 + i : below(kPods);
      spec.pods.push_back({.uid = fmt::format("uid-{}", pod),
                           .name = fmt::format("web-{}", pod),
                           .addresses = {*Addr::parse(address(pod))},
                           .mesh = below(5) != 0});
    }
    put(slice_json(spec, static_cast<uint32_t>(number), "", ""), "WorkloadSlice", "nodemesh.dev/v1alpha1");
  }

  std::mt19937 random_;
};

}  // namespace

TEST_CASE(
    "after any edits a translation that remembers the last one says what one that remembers nothing does") {
  const TranslateOptions options{.node = "node0", .cluster = true};
  for (uint32_t seed = 1; seed <= 40; ++seed) {
    CAPTURE(seed);
    Edits edits(seed);
    TranslateMemory memory;
    std::shared_ptr<const model::Snapshot> last;
    for (int step = 0; step < 60; ++step) {
      CAPTURE(step);
      for (int burst = 0; burst <= step % 3; ++burst) edits.any();
      auto remembered = translate::translate(edits.store, last, options, memory);
      auto fresh = translate::translate(edits.store, last, options);
      REQUIRE(remembered.snapshot->content().same_content(fresh.snapshot->content()));
      REQUIRE(translate::new_problems(remembered.statuses, fresh.statuses).empty());
      REQUIRE(translate::new_problems(fresh.statuses, remembered.statuses).empty());
      last = remembered.snapshot;
    }
    CHECK(last->generation() > 10);
  }
}

TEST_CASE("what did not change stays the same object, and a translation of nothing new the same snapshot") {
  const TranslateOptions options{.node = "node0", .cluster = true};
  Edits edits(7);
  for (int i = 0; i < 200; ++i) edits.any();
  TranslateMemory memory;
  auto first = translate::translate(edits.store, nullptr, options, memory).snapshot;
  CHECK(translate::translate(edits.store, first, options, memory).snapshot == first);
  edits.any();
  auto second = translate::translate(edits.store, first, options, memory).snapshot;
  size_t kept = 0;
  for (const auto& workload : second->workloads())
    for (const auto& before : first->workloads()) kept += before.get() == workload.get();
  CHECK(kept + 12 >= second->workloads().size());
  CHECK(kept > 0);
}

// Said in absolute terms: a translation that remembers and one that does not could be wrong in the same way.
TEST_CASE("a slice that stays as it is is believed anew whenever others change their word on its addresses") {
  const TranslateOptions options{.node = "node0", .cluster = true};
  Edits edits(1);
  TranslateMemory memory;
  std::shared_ptr<const model::Snapshot> last;
  auto believed = [&] {
    last = translate::translate(edits.store, last, options, memory).snapshot;
    std::string out;
    for (const auto& workload : last->workloads()) {
      if (workload->mesh != model::Mesh::hbone) continue;
      for (const auto& address : workload->addresses) out += address.to_string() + " ";
    }
    return out;
  };
  CHECK(believed() == "");
  edits.speak({"10.244.1.2", "10.244.1.3"});
  CHECK(believed() == "10.244.1.2 10.244.1.3 ");
  edits.claim(2, "10.244.1.2");
  CHECK(believed() == "10.244.1.3 ");
  edits.claim(2, "10.244.1.3");
  CHECK(believed() == "10.244.1.2 ");
  edits.unclaim();
  CHECK(believed() == "10.244.1.2 10.244.1.3 ");
}

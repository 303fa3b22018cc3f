#include <doctest/doctest.h>

#include <sstream>

#include "ctl/apply.h"
#include "ctl/check_words.h"
#include "ctl/helm.h"
#include "ctl/install.h"
#include "ctl/json_at.h"
#include "ctl/manifest_json.h"
#include "ctl/manifests.h"
#include "ctl/rollout.h"

using namespace nodemesh;
using namespace nodemesh::ctl;
using Json = nlohmann::json;

namespace {

// An API server that keeps objects by path, as far as an installation needs it.
class Kept final : public ClusterApi {
 public:
  std::map<std::string, Json> objects;
  std::vector<std::string> said;
  ClusterReply call(kube::Verb verb, const std::string& full, const Json& body,
                    std::string_view type) override {
    auto path = full.substr(0, full.find('?'));
    said.push_back(std::string(kube::verb_name(verb)) + " " + path);
    if (verb == kube::Verb::get) return read(path, full);
    if (verb == kube::Verb::remove) {
      auto gone = objects.erase(path);
      return {gone ? 200 : 404, Json::object(), gone ? "" : "not found"};
    }
    if (verb == kube::Verb::patch) CHECK(type == "application/apply-patch+yaml");
    auto at = verb == kube::Verb::post ? path + "/" + text_of(body, "metadata", "name") : path;
    if (full.find("dryRun=All") == full.npos) {
      auto before = objects.contains(at) ? objects[at] : Json();
      objects[at] = body;
      objects[at]["metadata"]["resourceVersion"] = std::to_string(text_of(body, "kind").size());
      objects[at]["status"] = {{"conditions", {{{"type", "Established"}, {"status", "True"}}}}};
    }
    return {200, objects.contains(at) ? objects[at] : body, ""};
  }

 private:
  ClusterReply read(const std::string& path, const std::string& full) {
    if (auto found = objects.find(path); found != objects.end()) return {200, found->second, ""};
    if (full.find("labelSelector") == full.npos) return {404, nullptr, "not found"};
    Json items = Json::array();
    for (const auto& [at, object] : objects) {
      bool below = at.starts_with(path + "/") && at.find('/', path.size() + 1) == at.npos;
      if (below && text_of(object, "metadata", "labels", "app.kubernetes.io/name") == "nodemesh")
        items.push_back(object);
    }
    return {200, {{"items", items}}, ""};
  }
};

Context context_to(std::ostringstream& out) {
  return {.out = out, .err = out};
}

}  // namespace

TEST_CASE("every profile's manifest is in the program, and all its objects are of known kinds") {
  CHECK(profiles().size() == 5);
  CHECK(find_profile("default")->values.empty());
  CHECK(!find_profile("strict")->values.empty());
  CHECK(find_profile("nothing") == nullptr);
  for (const auto& profile : profiles()) {
    auto objects = json_of_yaml(profile.manifest, std::string(profile.name));
    REQUIRE(objects.has_value());
    CHECK(objects->size() >= 15);
    for (const auto& object : *objects) CHECK(own_object(object).has_value());
  }
}

TEST_CASE("YAML becomes JSON with the types that Kubernetes reads") {
  auto made =
      json_of_yaml("a: 1\nb: \"1\"\nc: true\nd: null\ne: [x, 2.5]\nf: {g: ''}\n---\n---\nh: 0644\n", "x");
  REQUIRE(made.has_value());
  CHECK(made->at(0) == Json::parse(R"({"a":1,"b":"1","c":true,"d":null,"e":["x",2.5],"f":{"g":""}})"));
  CHECK(made->size() == 2);
  CHECK(!json_of_yaml("a: [", "x").has_value());
}

TEST_CASE("an object is created, then unchanged, and what is ours is found and can be removed") {
  Kept api;
  std::ostringstream out;
  Applier applier(api, out, false);
  auto objects = json_of_yaml(find_profile("strict")->manifest, "strict");
  REQUIRE(objects.has_value());
  for (const auto& object : *objects) REQUIRE(applier.apply(object).has_value());
  CHECK(out.str().contains("created: DaemonSet nodemesh-system/nodemesh-agent"));
  out.str("");
  REQUIRE(applier.apply(objects->front()).has_value());
  CHECK(out.str().starts_with("unchanged: "));
  auto own = find_own(api, "nodemesh-system");
  REQUIRE(own.has_value());
  CHECK(own->size() == objects->size());
  CHECK(own->front().text() == "DaemonSet nodemesh-system/nodemesh-agent");
  CHECK(own->front().removal() == "kubectl delete daemonsets nodemesh-agent -n nodemesh-system");
  for (const auto& object : *own) REQUIRE(applier.remove(object).has_value());
  CHECK(find_own(api, "nodemesh-system")->empty());
  CHECK(api.objects.empty());
}

TEST_CASE("what the controller makes at run time counts as ours although it carries no label") {
  Kept api;
  api.objects["/api/v1/namespaces/m/secrets/nodemesh-ca"] = {{"metadata", {{"name", "nodemesh-ca"}}}};
  api.objects["/apis/coordination.k8s.io/v1/namespaces/m/leases/nodemesh-controller"] = {{"kind", "Lease"}};
  api.objects["/api/v1/namespaces/m/secrets/cacerts"] = {{"metadata", {{"name", "cacerts"}}}};
  auto own = find_own(api, "m");
  REQUIRE(own.has_value());
  CHECK(own->size() == 2);
}

TEST_CASE("a dry run changes nothing, and an object that is there is not changed by create_if_absent") {
  Kept api;
  std::ostringstream out;
  Json map = {{"apiVersion", "v1"}, {"kind", "ConfigMap"}, {"metadata", {{"name", "x"}, {"namespace", "m"}}}};
  REQUIRE(Applier(api, out, true).apply(map).has_value());
  REQUIRE(Applier(api, out, true).create_if_absent(map).has_value());
  CHECK(api.objects.empty());
  CHECK(out.str() == "would be created: ConfigMap m/x\nwould be created: ConfigMap m/x\n");
  REQUIRE(Applier(api, out, false).create_if_absent(map).has_value());
  map["data"] = {{"a", "b"}};
  REQUIRE(Applier(api, out, false).create_if_absent(map).has_value());
  CHECK(!api.objects.begin()->second.contains("data"));
}

TEST_CASE("why an installation does not run names the pod and what it waits for") {
  auto daemonset =
      Json::parse(R"({"metadata":{"generation":2},"status":{"observedGeneration":2,"desiredNumberScheduled":3,
    "updatedNumberScheduled":3,"numberReady":2}})");
  auto pod = Json::parse(R"({"metadata":{"name":"p"},"spec":{"nodeName":"b"},"status":{"containerStatuses":[
    {"name":"proxy","state":{"waiting":{"reason":"ErrImageNeverPull"}}}]}})");
  CHECK(why_not_running(daemonset, nullptr, {pod}) ==
        "2 of 3 agents are ready, 3 of them new; pod p on b: container proxy: ErrImageNeverPull");
  daemonset["status"]["numberReady"] = 3;
  CHECK(why_not_running(daemonset, nullptr, {pod}) == "");
  daemonset["metadata"]["generation"] = 3;
  CHECK(why_not_running(daemonset, nullptr, {}) == "the DaemonSet is not looked at yet");
  daemonset["metadata"]["generation"] = 2;
  auto deployment =
      Json::parse(R"({"spec":{"replicas":2},"status":{"readyReplicas":2,"updatedReplicas":1}})");
  CHECK(why_not_running(daemonset, deployment, {}) == "2 of 2 controllers are ready");
}

TEST_CASE("a namespace that was deleted is waited for, and one that stays so is named") {
  Kept api;
  std::ostringstream out;
  Context context = context_to(out);
  context.ns = "m";
  CHECK(wait_not_terminating(context, api, seconds(0)).has_value());
  api.objects["/api/v1/namespaces/m"] = {{"metadata", {{"name", "m"}}}};
  CHECK(wait_not_terminating(context, api, seconds(0)).has_value());
  api.objects["/api/v1/namespaces/m"]["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z";
  auto stuck = wait_not_terminating(context, api, seconds(0));
  REQUIRE(!stuck.has_value());
  CHECK(stuck.error().message == "namespace m was deleted and is not gone after 0 s");
  CHECK(out.str() == "waiting: namespace m was deleted and is not gone yet\n");
}

TEST_CASE("Helm is used where it and the chart are there, and never beside manifests") {
  std::ostringstream out;
  Context context = context_to(out);
  InstallOptions options{.helm = "/bin/true", .chart = "/chart"};
  CHECK(choose_way(context, options, Manner::none)->manner == Manner::helm);
  CHECK(choose_way(context, options, Manner::helm)->manner == Manner::helm);
  CHECK(choose_way(context, options, Manner::manifests)->manner == Manner::manifests);
  options.set = {"image.tag=x"};
  CHECK(!choose_way(context, options, Manner::manifests).has_value());
  options.no_helm = true;
  auto refused = choose_way(context, options, Manner::none);
  REQUIRE(!refused.has_value());
  CHECK(refused.error().message == "--set needs Helm: --no-helm was given");
  options.set.clear();
  CHECK(choose_way(context, options, Manner::none)->manner == Manner::manifests);
  CHECK(!choose_way(context, options, Manner::helm).has_value());
  context.ns = "elsewhere";
  CHECK(!choose_way(context, options, Manner::none).has_value());
}

TEST_CASE("a program gets its words and its input, and its exit code comes back") {
  CHECK(run_program("/bin/sh", {"-c", "read a; test \"$a\" = values && exit 7"}, "values\n") == 7);
  CHECK(run_program("/bin/sh", {"-c", "exit 0"}, "") == 0);
  CHECK(!run_program("/no/such/program", {}, "").has_value());
  CHECK(find_program("/no/such/program").empty());
  CHECK(find_program("sh").ends_with("/sh"));
}

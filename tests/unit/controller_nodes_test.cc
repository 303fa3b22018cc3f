// Nodes without an agent, whose WorkloadSlices the leader writes, and the marks on Pods.
#include <doctest/doctest.h>

#include "controller/agentless.h"
#include "controller/pod_marks.h"
#include "kube/json.h"
#include "translate/translate.h"
#include "unit/controller_api.h"

using namespace nodemesh;
using namespace nodemesh::controller;

namespace {

constexpr auto kSlice0 = "/apis/nodemesh.dev/v1alpha1/workloadslices/n1-0";
constexpr auto kWeb = "/api/v1/namespaces/shop/pods/web-1";

std::shared_ptr<kube::Object> object_of(const Json& object) {
  return kube::make_api_object(*kube::parse_json(object.dump()), text_at(object, {"kind"}),
                               text_at(object, {"apiVersion"}));
}

Json pod_json(const std::string& ns, const std::string& name, const std::string& node,
              const std::string& account = "web") {
  return {
      {"apiVersion", "v1"},
      {"kind", "Pod"},
      {"metadata", {{"namespace", ns}, {"name", name}, {"uid", "uid-" + name}, {"labels", {{"app", "web"}}}}},
      {"spec", {{"nodeName", node}, {"serviceAccountName", account}}},
      {"status", {{"phase", "Running"}, {"podIPs", {{{"ip", "10.244.1.7"}}}}}}};
}

struct Fixture {
  io::Reactor reactor;
  ManualClock clock;
  test::FakeApi api;
  NodePods pods{{{"mesh", "agent"}}};
  kube::Store store{translate::kinds()};
  std::vector<std::string> told;
  bool interop = false;
  AgentlessNodes nodes{
      reactor, clock, api, pods, {.interop_istio = interop}, [this](const std::string& node) {
        told.push_back(node);
      }};
  PodMarks marks{reactor,
                 clock,
                 api,
                 pods,
                 [this](const std::string& node) { return nodes.agentless(node); },
                 interop,
                 {.gap = milliseconds(0)}};

  explicit Fixture(bool interop = false) : interop(interop) {
    add_node("n1");
    store.upsert(
        object_of({{"apiVersion", "v1"},
                   {"kind", "Namespace"},
                   {"metadata", {{"name", "shop"}, {"labels", {{"istio.io/dataplane-mode", "ambient"}}}}}}));
    store.upsert(object_of({{"apiVersion", "v1"}, {"kind", "Namespace"}, {"metadata", {{"name", "plain"}}}}));
    add(pod_json("shop", "web-1", "n1"));
  }
  void add_node(const std::string& name) {
    store.upsert(object_of(
        {{"apiVersion", "v1"}, {"kind", "Node"}, {"metadata", {{"name", name}, {"uid", "uid-" + name}}}}));
  }
  void add(const Json& pod) {
    api.put("/api/v1/namespaces/" + text_at(pod, {"metadata", "namespace"}) + "/pods/" +
                text_at(pod, {"metadata", "name"}),
            pod);
    pods.upsert(*object_of(pod));
  }
  void add_agent() { add(pod_json("mesh", "agent-1", "n1", "agent")); }
  // What an agent has written.
  void add_slice(const std::string& state) {
    Json pod = {
        {"uid", "uid-web-1"}, {"name", "web-1"}, {"ips", {"10.244.1.7"}}, {"template", 0}, {"state", state}};
    api.put(
        kSlice0,
        {{"apiVersion", "nodemesh.dev/v1alpha1"},
         {"kind", "WorkloadSlice"},
         {"metadata", {{"name", "n1-0"}}},
         {"spec",
          {{"node", "n1"},
           {"complete", true},
           {"templates", {{{"namespace", "shop"}, {"serviceAccount", "web"}, {"labels", {{"app", "web"}}}}}},
           {"pods", {pod}}}}});
    store.upsert(object_of(api.objects.at(kSlice0)));
  }
  // Time passes, and everybody who has something to do does it.
  void after(seconds time) {
    clock.advance(time);
    nodes.update(store);
    for (int i = 0; i < 20; ++i) {
      api.answer_all();
      reactor.run_once(milliseconds(0));
    }
  }
  Json slice() { return api.objects.contains(kSlice0) ? api.objects.at(kSlice0)["spec"] : Json(); }
  void redirect(bool on) {
    Json pod = api.objects.at(kWeb);
    pod["metadata"]["annotations"] = on ? Json{{"ambient.istio.io/redirection", "enabled"}} : Json::object();
    add(pod);
  }
  // Until what is to be written has been.
  Json state_after_a_while(const std::string& wanted) {
    auto until = Monotonic::now() + seconds(10);
    after(seconds(1));
    while (slice()["pods"][0]["state"] != wanted && Monotonic::now() < until) {
      reactor.run_once(milliseconds(20));
      api.answer_all();
    }
    if (api.objects.contains(kSlice0)) store.upsert(object_of(api.objects.at(kSlice0)));
    return slice()["pods"][0]["state"];
  }
  Json redirection() {
    const Json* all = find(api.objects.at(kWeb), {"metadata", "annotations"});
    return all && all->contains("ambient.istio.io/redirection") ? (*all)["ambient.istio.io/redirection"]
                                                                : Json();
  }
  Json mark(const char* path = kWeb) {
    marks.update(store, {"n1"});
    for (int turns = 0; turns < 6; ++turns) {
      reactor.run_once(milliseconds(0));
      api.answer_all();
    }
    const Json* all = find(api.objects.at(path), {"status", "conditions"});
    pods.upsert(*object_of(api.objects.at(path)));
    clock.advance(seconds(10));
    return all ? all->back() : Json();
  }
};

}  // namespace

TEST_CASE_FIXTURE(Fixture, "of a node that never had an agent other nodes hear that its pods are outside") {
  after(seconds(0));
  after(seconds(9));
  CHECK(slice().is_null());
  after(seconds(1));
  REQUIRE_FALSE(slice().is_null());
  CHECK(slice()["complete"] == true);
  REQUIRE(slice()["pods"].size() == 1);
  CHECK(slice()["pods"][0]["name"] == "web-1");
  CHECK(slice()["pods"][0]["state"] == "none");
  CHECK(slice()["templates"][0]["labels"]["app"] == "web");
  CHECK_FALSE(slice()["templates"][0].contains("protocols"));
  CHECK(api.objects.at(kSlice0)["metadata"]["ownerReferences"][0]["uid"] == "uid-n1");
  CHECK(nodes.agentless("n1"));
  CHECK(told == std::vector<std::string>{"n1"});
}

TEST_CASE_FIXTURE(Fixture,
                  "a node with an agent's pod, even one that does not run yet, is the agent's alone") {
  Json agent = pod_json("mesh", "agent-1", "n1", "agent");
  agent["status"] = {{"phase", "Pending"}};
  add(agent);
  add_slice("mesh");
  for (int i = 0; i < 5; ++i) after(seconds(3600));
  CHECK(api.count("POST") + api.count("PUT") + api.count("DELETE") == 0);
  CHECK(nodes.size() == 0);
}

TEST_CASE_FIXTURE(Fixture, "an agent that comes takes over, and nothing is written for its node any more") {
  after(seconds(0));
  after(seconds(10));
  REQUIRE(nodes.agentless("n1"));
  add_agent();
  after(seconds(0));
  CHECK_FALSE(nodes.agentless("n1"));
  size_t writes = api.log.size();
  add(pod_json("shop", "web-2", "n1"));
  after(seconds(3600));
  CHECK(api.log.size() == writes);
  CHECK(told.size() == 2);
}

TEST_CASE_FIXTURE(Fixture, "between two pods of an agent its slices are left alone") {
  add_agent();
  add_slice("mesh");
  after(seconds(0));
  pods.remove("mesh", "agent-1");
  after(seconds(0));
  after(seconds(59));
  CHECK(api.count("PUT") == 0);
  add_agent();
  after(seconds(0));
  pods.remove("mesh", "agent-1");
  after(seconds(59));  // it counts from anew
  CHECK(api.count("PUT") == 0);
}

TEST_CASE_FIXTURE(Fixture,
                  "where the agent has gone for good its pods stay meshed and new ones are outside") {
  add_slice("mesh");
  after(seconds(0));
  after(seconds(60));
  CHECK(nodes.agentless("n1"));
  add(pod_json("shop", "web-2", "n1"));
  after(seconds(1));
  auto until = Monotonic::now() + seconds(10);
  while (slice()["pods"].size() < 2 && Monotonic::now() < until) {
    reactor.run_once(milliseconds(20));
    api.answer_all();
  }
  REQUIRE(slice()["pods"].size() == 2);
  for (const auto& pod : slice()["pods"]) CHECK(pod["state"] == (pod["name"] == "web-1" ? "mesh" : "none"));
}

TEST_CASE_FIXTURE(Fixture, "a node that is gone is nobody's, and a thousand are not begun with at once") {
  for (int i = 2; i <= 100; ++i) add_node("n" + std::to_string(i));
  nodes.update(store);
  clock.advance(seconds(10));
  nodes.update(store);
  CHECK(nodes.size() == 20);
  CHECK(api.count("POST") == 20);
  for (int i = 1; i <= 100; ++i) store.remove({"", "Node", "", "n" + std::to_string(i)});
  nodes.update(store);
  CHECK(nodes.size() == 0);
}

TEST_CASE_FIXTURE(Fixture,
                  "pods are told apart by node, and those of one owner share what they have in common") {
  add(pod_json("shop", "web-2", "n1"));
  add(pod_json("shop", "web-3", "n2"));
  CHECK(pods.on("n1").size() == 2);
  CHECK(pods.find("shop", "web-1")->common == pods.find("shop", "web-3")->common);
  add(pod_json("shop", "web-2", "n2"));
  CHECK(pods.on("n1").size() == 1);
  Json finished = pod_json("shop", "web-3", "n2");
  finished["status"]["phase"] = "Succeeded";
  add(finished);
  CHECK(pods.on("n2").size() == 1);
  CHECK(pods.find("shop", "web-3") == nullptr);
  CHECK(pods.take_changed() == std::set<std::string>{"n1", "n2"});
  CHECK(pods.take_changed().empty());
}

TEST_CASE_FIXTURE(Fixture,
                  "a pod that its agent has in the mesh carries the mark, beside kubelet's conditions") {
  api.objects.at(kWeb)["status"]["conditions"] = {{{"type", "Ready"}, {"status", "True"}}};
  add_agent();
  CHECK(mark()["type"] == "Ready");  // the agent has not said anything yet
  CHECK(api.count("PATCH") == 0);
  add_slice("none");
  CHECK(mark()["type"] == "Ready");
  add_slice("mesh");
  Json made = mark();
  CHECK(made["type"] == "nodemesh.dev/Enrolled");
  CHECK(made["status"] == "True");
  CHECK(made["reason"] == "Enrolled");
  CHECK(made["lastTransitionTime"].is_string());
  CHECK(api.objects.at(kWeb)["status"]["conditions"].size() == 2);
  CHECK(mark() == made);
  CHECK(api.count("PATCH") == 1);
}

TEST_CASE_FIXTURE(Fixture, "a pod that is kept out although a label wants it says why") {
  add_agent();
  Json pod = pod_json("shop", "web-1", "n1");
  pod["spec"]["hostNetwork"] = true;
  add(pod);
  CHECK(mark()["reason"] == "HostNetwork");
  pod = api.objects.at(kWeb);
  pod["spec"].erase("hostNetwork");
  pod["metadata"]["annotations"]["sidecar.istio.io/status"] = "{}";
  add(pod);
  std::string since = mark()["lastTransitionTime"];
  CHECK(mark()["reason"] == "Sidecar");
  CHECK(mark()["status"] == "False");
  pod = api.objects.at(kWeb);
  pod["metadata"].erase("annotations");
  pod["spec"]["runtimeClassName"] = "gvisor";
  add(pod);
  CHECK(mark()["reason"] == "RuntimeClass");
  CHECK(mark()["message"].get<std::string>().find("\"gvisor\"") != std::string::npos);
  CHECK(mark()["lastTransitionTime"] == since);  // it was False before
}

TEST_CASE_FIXTURE(Fixture,
                  "a pod on a node without an agent says so, and a pod that nobody wants has no mark") {
  after(seconds(0));
  after(seconds(10));
  CHECK(mark()["reason"] == "NoAgent");
  add(pod_json("plain", "other", "n1"));
  CHECK(mark("/api/v1/namespaces/plain/pods/other").is_null());
  // One that was in the mesh and is not wanted there any more says that, too.
  Json pod = api.objects.at(kWeb);
  pod["metadata"]["labels"]["istio.io/dataplane-mode"] = "none";
  add(pod);
  CHECK(mark()["reason"] == "NotLabelled");
}

struct WithIstio : Fixture {
  WithIstio() : Fixture(true) {}
};

TEST_CASE_FIXTURE(WithIstio,
                  "a ztunnel's pod on a node without an agent is meshed while its annotation says so") {
  redirect(true);
  after(seconds(0));
  after(seconds(10));
  CHECK(state_after_a_while("mesh") == "mesh");
  CHECK(state_after_a_while("mesh") == "mesh");  // by now the slice itself says so
  redirect(false);
  CHECK(state_after_a_while("none") == "none");
}

TEST_CASE_FIXTURE(Fixture, "without the flag nobody believes or writes Istio's annotation") {
  redirect(true);
  after(seconds(0));
  after(seconds(10));
  CHECK(state_after_a_while("none") == "none");
  redirect(false);
  add_agent();
  after(seconds(0));
  add_slice("mesh");
  CHECK(mark()["status"] == "True");
  CHECK(redirection().is_null());
}

TEST_CASE_FIXTURE(WithIstio, "a pod of ours has Istio's annotation while it is in the mesh") {
  add_agent();
  add_slice("none");
  mark();
  CHECK(redirection().is_null());
  add_slice("mesh");
  CHECK(mark()["status"] == "True");
  CHECK(redirection() == "enabled");
  mark();
  CHECK(api.count("PATCH") == 1);
  Json pod = api.objects.at(kWeb);  // marked by a controller that had not the flag
  pod["metadata"].erase("annotations");
  add(pod);
  mark();
  CHECK(redirection() == "enabled");
  pod = api.objects.at(kWeb);
  pod["metadata"]["labels"]["istio.io/dataplane-mode"] = "none";
  add(pod);
  CHECK(mark()["reason"] == "NotLabelled");
  CHECK(redirection().is_null());
}

TEST_CASE_FIXTURE(WithIstio, "the annotation of a pod on a node without an agent is Istio's to write") {
  redirect(true);
  after(seconds(0));
  after(seconds(10));
  CHECK(mark()["reason"] == "NoAgent");
  CHECK(redirection() == "enabled");
}

TEST_CASE_FIXTURE(Fixture, "another pod of the name does not get the mark of the one before") {
  add_agent();
  add_slice("mesh");
  api.objects.at(kWeb)["metadata"]["uid"] = "uid-newer";
  marks.update(store, {"n1"});
  auto until = Monotonic::now() + seconds(10);
  while (!marks.idle() && Monotonic::now() < until) {
    reactor.run_once(milliseconds(2));
    api.answer_all();
  }
  CHECK(api.count("PATCH") == 1);
  CHECK(find(api.objects.at(kWeb), {"status", "conditions"}) == nullptr);
}

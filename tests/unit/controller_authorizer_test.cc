// Who gets which identity on Kubernetes: the decisions, against an API server in memory.
#include <doctest/doctest.h>

#include "controller/cluster_authorizer.h"
#include "unit/controller_api.h"

using namespace nodemesh;
using namespace nodemesh::controller;

namespace {

constexpr auto kToken = "aaa.bbb.ccc";

Json good_review(const std::string& user = "system:serviceaccount:nodemesh-system:nodemesh-agent",
                 const std::string& pod = "agent-1", const std::string& uid = "uid-agent-1") {
  return {{"status",
           {{"authenticated", true},
            {"audiences", {"istio-ca"}},
            {"user",
             {{"username", user},
              {"extra",
               {{"authentication.kubernetes.io/pod-name", {pod}},
                {"authentication.kubernetes.io/pod-uid", {uid}}}}}}}}};
}

Json pod_json(const std::string& ns, const std::string& name, const std::string& account,
              const std::string& node, const std::string& phase = "Running") {
  return {{"apiVersion", "v1"},
          {"kind", "Pod"},
          {"metadata", {{"namespace", ns}, {"name", name}, {"uid", "uid-" + name}}},
          {"spec", {{"nodeName", node}, {"serviceAccountName", account}}},
          {"status", {{"phase", phase}}}};
}

std::string node_pods(const std::string& ns, const std::string& node) {
  return "/api/v1/namespaces/" + ns + "/pods?fieldSelector=spec.nodeName%3D" + node;
}

struct Fixture {
  ManualClock clock;
  test::FakeApi api;
  PodIndex pods;
  ClusterAuthorizer authorizer{clock, api, pods, {.agents = {{"nodemesh-system", "nodemesh-agent"}}}};

  Fixture() {
    api.review = [](const Json&) { return good_review(); };
    add("nodemesh-system", "agent-1", "nodemesh-agent", "n1");
    add("shop", "web-1", "web", "n1");
    add("shop", "db-1", "db", "n2");
  }
  void add(const std::string& ns, const std::string& name, const std::string& account,
           const std::string& node, bool finished = false) {
    pods.upsert({ns, name, "uid-" + name, node, account, finished});
  }
  std::string culprit;  // the Pod whose asking was refused, if that is certain
  // "ns/account", or the refusal's name.
  std::string ask(const std::string& account, const std::string& ns = "shop",
                  const std::string& token = kToken) {
    std::optional<tls::SpiffeId> asked;
    if (!account.empty()) asked = tls::SpiffeId{"cluster.local", ns, account};
    std::string out = "no answer";
    authorizer.authorize({.token = token, .peer = "10.0.0.9"}, asked, [&](Authorizer::Verdict verdict) {
      CHECK(out == "no answer");
      culprit =
          verdict || !verdict.error().pod ? "" : verdict.error().pod->name + " " + verdict.error().pod->uid;
      out =
          verdict ? verdict->ns + "/" + verdict->service_account : std::string(name(verdict.error().refusal));
    });
    api.answer_all();
    return out;
  }
};

}  // namespace

TEST_CASE_FIXTURE(Fixture, "an agent gets the identities that run on its node, and no other") {
  CHECK(ask("web") == "shop/web");
  CHECK(ask("db") == "no_pod_on_node");
  CHECK(ask("web", "other") == "no_pod_on_node");
  CHECK(culprit == "agent-1 uid-agent-1");
}

TEST_CASE_FIXTURE(Fixture, "a finished pod gives no right to its identity") {
  add("shop", "job-1", "job", "n1", true);
  CHECK(ask("job") == "no_pod_on_node");
  add("shop", "job-2", "job", "n1");
  CHECK(ask("job") == "shop/job");
  pods.remove("shop", "job-2");
  CHECK(ask("job") == "no_pod_on_node");
}

TEST_CASE_FIXTURE(Fixture, "what the watch does not know yet is asked for once, by namespace and node") {
  api.objects[node_pods("shop", "n1")] = {{"metadata", {{"resourceVersion", "9"}}},
                                          {"items", {pod_json("shop", "late-1", "late", "n1")}}};
  CHECK(ask("late") == "shop/late");
  CHECK(api.count("GET " + node_pods("shop", "n1")) == 1);
  // An answer that names other pods than were asked for gives nothing away.
  api.objects[node_pods("shop", "n1")]["items"] = {pod_json("shop", "x-1", "x", "n2"),
                                                   pod_json("other", "x-2", "x", "n1"),
                                                   pod_json("shop", "x-3", "x", "n1", "Failed")};
  CHECK(ask("x") == "no_pod_on_node");
}

TEST_CASE_FIXTURE(Fixture, "an agent whose own pod is new is looked up; one that is replaced is refused") {
  api.review = [](const Json&) {
    return good_review("system:serviceaccount:nodemesh-system:nodemesh-agent", "agent-2", "uid-agent-2");
  };
  CHECK(ask("web") == "caller_pod_unknown");
  api.objects["/api/v1/namespaces/nodemesh-system/pods/agent-2"] =
      pod_json("nodemesh-system", "agent-2", "nodemesh-agent", "n1");
  CHECK(ask("web") == "shop/web");
  // Same name, but the token was bound to the pod before it.
  pods.upsert({"nodemesh-system", "agent-2", "uid-newer", "n1", "nodemesh-agent", false});
  api.objects["/api/v1/namespaces/nodemesh-system/pods/agent-2"]["metadata"]["uid"] = "uid-newer";
  CHECK(ask("web") == "caller_pod_unknown");
}

TEST_CASE_FIXTURE(Fixture, "a pod that has finished asks for nothing, even its own identity") {
  add("nodemesh-system", "agent-1", "nodemesh-agent", "n1", true);
  CHECK(ask("web") == "caller_pod_unknown");
  CHECK(culprit.empty());
  CHECK(ask("") == "caller_pod_unknown");
}

TEST_CASE_FIXTURE(Fixture, "an ordinary pod gets its own identity and no other") {
  api.review = [](const Json&) {
    return good_review("system:serviceaccount:shop:web", "web-1", "uid-web-1");
  };
  CHECK(ask("") == "shop/web");
  CHECK(ask("web") == "shop/web");
  CHECK(ask("db") == "not_an_agent");
  CHECK(culprit == "web-1 uid-web-1");
  // The token's service account and the pod's must be the same.
  api.review = [](const Json&) { return good_review("system:serviceaccount:shop:db", "web-1", "uid-web-1"); };
  clock.advance(seconds(60));
  CHECK(ask("") == "caller_pod_unknown");
}

TEST_CASE_FIXTURE(Fixture, "an account of the agent's name in another namespace is no agent") {
  add("shop", "fake-1", "nodemesh-agent", "n1");
  api.review = [](const Json&) {
    return good_review("system:serviceaccount:shop:nodemesh-agent", "fake-1", "uid-fake-1");
  };
  CHECK(ask("web") == "not_an_agent");
}

TEST_CASE_FIXTURE(Fixture,
                  "a token is believed only as TokenReview says, for our audience and bound to a pod") {
  struct Case {
    const char* says;
    Json review;
    const char* outcome;
  };
  auto changed = [](auto change) {
    Json review = good_review();
    change(review["status"]);
    return review;
  };
  const Case cases[] = {
      {"nothing", Json::object(), "token_rejected"},
      {"false", changed([](Json& s) { s["authenticated"] = false; }), "token_rejected"},
      {"a string", changed([](Json& s) { s["authenticated"] = "true"; }), "token_rejected"},
      {"no audience", changed([](Json& s) { s.erase("audiences"); }), "token_rejected"},
      {"another audience", changed([](Json& s) { s["audiences"] = {"https://kubernetes.default.svc"}; }),
       "token_rejected"},
      {"a person", good_review("kubernetes-admin"), "token_not_of_pod"},
      {"no colon", good_review("system:serviceaccount:"), "token_not_of_pod"},
      {"no pod", changed([](Json& s) { s["user"].erase("extra"); }), "token_not_of_pod"},
      {"two uids", changed([](Json& s) {
         s["user"]["extra"]["authentication.kubernetes.io/pod-uid"] = {"uid-agent-1", "uid-agent-2"};
       }),
       "token_not_of_pod"},
  };
  for (const auto& one : cases) {
    CAPTURE(one.says);
    api.review = [&](const Json&) { return one.review; };
    CHECK(ask("web") == one.outcome);
  }
}

TEST_CASE_FIXTURE(Fixture, "what cannot be a token is refused without asking the API server") {
  for (const std::string& token :
       {std::string(), std::string("abc"), std::string("a.b c.d"), std::string("a.b.c.d"),
        std::string("a.") + std::string(17 * 1024, 'x') + ".b"})
    CHECK(ask("web", "shop", token) == "no_token");
  CHECK(api.log.empty());
}

TEST_CASE_FIXTURE(Fixture,
                  "the review asks for our audience, and a good one is remembered for half a minute") {
  Json sent;
  api.review = [&](const Json& body) {
    sent = body;
    return good_review();
  };
  CHECK(ask("web") == "shop/web");
  CHECK(sent["spec"]["audiences"] == Json({"istio-ca"}));
  CHECK(sent["spec"]["token"] == kToken);
  CHECK(ask("web") == "shop/web");
  CHECK(api.count("POST") == 1);
  // The pod is not remembered: once it is gone, so is the right.
  pods.remove("nodemesh-system", "agent-1");
  CHECK(ask("web") == "caller_pod_unknown");
  add("nodemesh-system", "agent-1", "nodemesh-agent", "n1");
  clock.advance(seconds(31));
  CHECK(ask("web") == "shop/web");
  CHECK(api.count("POST") == 2);
  api.review = [](const Json&) { return Json::object(); };
  CHECK(ask("web", "shop", "ddd.eee.fff") == "token_rejected");
  CHECK(ask("web", "shop", "ddd.eee.fff") == "token_rejected");
  CHECK(api.count("POST") == 4);  // a refusal is not remembered
}

TEST_CASE_FIXTURE(Fixture,
                  "while the API server does not answer, a token that it called good counts for an hour") {
  const std::string reviews = "/apis/authentication.k8s.io/v1/tokenreviews";
  CHECK(ask("web") == "shop/web");
  api.broken[reviews] = 0;
  clock.advance(seconds(31));
  CHECK(ask("web") == "shop/web");
  api.broken[reviews] = 503;
  CHECK(ask("web") == "shop/web");
  CHECK(ask("web", "shop", "ddd.eee.fff") == "api_unavailable");  // which was never called good
  api.broken[reviews] = 429;
  CHECK(ask("web") == "shop/web");
  api.broken[reviews] = 403;
  CHECK(ask("web") == "api_unavailable");  // an answer, if none to our question
  api.broken[reviews] = 0;
  clock.advance(seconds(3600));
  CHECK(ask("web") == "api_unavailable");
}

TEST_CASE_FIXTURE(Fixture, "a token that the API server has called bad since does not count any more") {
  CHECK(ask("web") == "shop/web");
  clock.advance(seconds(31));
  api.review = [](const Json&) { return Json::object(); };
  CHECK(ask("web") == "token_rejected");
  api.broken["/apis/authentication.k8s.io/v1/tokenreviews"] = 0;
  CHECK(ask("web") == "api_unavailable");
}

TEST_CASE_FIXTURE(Fixture, "an API server that does not answer is not a refusal of the caller") {
  api.broken["/apis/authentication.k8s.io/v1/tokenreviews"] = 0;
  CHECK(ask("web") == "api_unavailable");
  api.broken["/apis/authentication.k8s.io/v1/tokenreviews"] = 403;
  CHECK(ask("web") == "api_unavailable");
  api.broken.clear();
  CHECK(ask("web") == "shop/web");
  api.broken[node_pods("shop", "n1")] = 500;
  CHECK(ask("late") == "api_unavailable");
}

TEST_CASE_FIXTURE(Fixture, "a flood of tokens does not become a flood of reviews") {
  size_t overloaded = 0, answered = 0;
  for (int i = 0; i < 500; ++i) {
    authorizer.authorize({.token = "a.b." + std::to_string(i), .peer = {}}, std::nullopt, [&](auto verdict) {
      ++answered;
      overloaded += !verdict && verdict.error().refusal == Refusal::overloaded;
    });
  }
  CHECK(api.log.size() == 128);
  CHECK(overloaded == 372);
  api.answer_all();
  CHECK(answered == 500);
  CHECK(ask("web") == "shop/web");
}

TEST_CASE_FIXTURE(Fixture, "a flood of strangers' tokens keeps no agent out that was good before") {
  CHECK(ask("web") == "shop/web");
  clock.advance(seconds(31));
  for (int i = 0; i < 500; ++i)
    authorizer.authorize({.token = "a.b." + std::to_string(i), .peer = {}}, std::nullopt, [](auto) {});
  CHECK(ask("web") == "shop/web");
}

TEST_CASE("pods are counted by node and account through moves, restarts and removals") {
  PodIndex pods;
  PodFact pod{"shop", "web-1", "u1", "", "web", false};
  pods.upsert(pod);
  CHECK_FALSE(pods.runs("", "shop", "web"));  // a pod on no node gives nobody a right
  pod.node = "n1";
  pods.upsert(pod);
  pods.upsert(pod);
  CHECK(pods.runs("n1", "shop", "web"));
  pods.upsert({"shop", "web-2", "u2", "n1", "web", false});
  pods.remove("shop", "web-1");
  pods.remove("shop", "web-1");
  CHECK(pods.runs("n1", "shop", "web"));
  pods.upsert({"shop", "web-2", "u3", "n2", "web", false});
  CHECK_FALSE(pods.runs("n1", "shop", "web"));
  CHECK(pods.runs("n2", "shop", "web"));
  CHECK(pods.size() == 1);
}

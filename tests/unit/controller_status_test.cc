// Conditions and Events on policies, and the pace of writes: against an API server in memory.
#include <doctest/doctest.h>

#include "controller/policy_statuses.h"
#include "kube/json.h"
#include "unit/controller_api.h"

using namespace nodemesh;
using namespace nodemesh::controller;

namespace {

constexpr auto kPolicy = "/apis/security.istio.io/v1/namespaces/shop/authorizationpolicies/web";
constexpr auto kEvents = "/apis/events.k8s.io/v1/namespaces/shop/events/";

Json policy(const std::string& block, int generation = 1) {
  return {{"apiVersion", "security.istio.io/v1"},
          {"kind", "AuthorizationPolicy"},
          {"metadata", {{"namespace", "shop"}, {"name", "web"}, {"uid", "u1"}, {"generation", generation}}},
          {"spec", {{"action", "ALLOW"}, {"rules", {{{"from", {{{"source", {{"ipBlocks", {block}}}}}}}}}}}}};
}

struct Fixture {
  io::Reactor reactor;
  ManualClock clock;
  test::FakeApi api;
  EventPoster events{clock, api, "controller-1"};
  PolicyStatuses statuses{reactor, clock, api, events, {}, {.gap = milliseconds(0)}};
  kube::Store store{translate::kinds()};

  // The API server has it, and the watch brings it.
  void apply(const std::string& path, Json object) {
    api.put(path, std::move(object));
    watch(path);
  }
  void watch(const std::string& path) {
    const Json& object = api.objects.at(path);
    auto read = kube::make_api_object(*kube::parse_json(object.dump()), text_at(object, {"kind"}),
                                      text_at(object, {"apiVersion"}));
    statuses.note(*read);
    store.upsert(std::move(read));
    statuses.update(store);
  }
  // Until nothing is left to be written now: the reactor's timers wait for nobody here.
  void settle() {
    for (int turns = 0; turns < 6; ++turns) {
      reactor.run_once(milliseconds(0));
      if (!api.asked.empty()) turns = 0;
      api.answer_all();
    }
  }
  Json conditions() { return api.objects.at(kPolicy)["status"]["conditions"]; }
  Json condition() {
    for (const auto& one : conditions()) {
      if (one["type"] == "nodemesh.dev/Accepted") return one;
    }
    return nullptr;
  }
  std::vector<Json> said() {
    std::vector<Json> out;
    for (const auto& [path, object] : api.objects) {
      if (path.starts_with(kEvents)) out.push_back(object);
    }
    return out;
  }
};

}  // namespace

TEST_CASE_FIXTURE(Fixture,
                  "a refused policy says which field is wrong and how to mend it, and has an Event") {
  apply(kPolicy, policy("10.0.0.300"));
  settle();
  CHECK(condition()["status"] == "False");
  CHECK(condition()["reason"] == "Refused");
  CHECK(condition()["observedGeneration"] == 1);
  std::string message = condition()["message"];
  CHECK(message.find("spec.rules[0].from[0].source.ipBlocks") != message.npos);
  CHECK(message.find("10.0.0.300") != message.npos);
  CHECK(message.find("fix: ") != message.npos);
  REQUIRE(said().size() == 1);
  Json event = said()[0];
  CHECK(event["note"] == message);
  CHECK(event["reason"] == "Refused");
  CHECK(event["type"] == "Warning");
  CHECK(event["regarding"]["kind"] == "AuthorizationPolicy");
  CHECK(event["regarding"]["uid"] == "u1");
  CHECK(event["regarding"]["namespace"] == "shop");
}

TEST_CASE_FIXTURE(Fixture,
                  "a policy that is mended is accepted, and one with a field that is not served says so") {
  apply(kPolicy, policy("10.0.0.300"));
  settle();
  std::string refused_at = condition()["lastTransitionTime"];
  clock.advance(seconds(60));
  Json mended = policy("10.0.0.0/8", 2);
  mended["status"] = api.objects.at(kPolicy)["status"];
  apply(kPolicy, mended);
  settle();
  CHECK(condition()["status"] == "True");
  CHECK(condition()["reason"] == "Accepted");
  CHECK(condition()["observedGeneration"] == 2);
  std::string accepted_at = condition()["lastTransitionTime"];
  CHECK(accepted_at != refused_at);
  clock.advance(seconds(60));
  Json partly = policy("10.0.0.0/8", 3);
  partly["spec"]["targetRefs"] = {{{"group", ""}, {"kind", "Service"}, {"name", "nobody"}}};
  partly["status"] = api.objects.at(kPolicy)["status"];
  apply(kPolicy, partly);
  settle();
  CHECK(condition()["status"] == "True");
  CHECK(condition()["reason"] == "AcceptedWithWarnings");
  CHECK(condition()["message"].get<std::string>().find("there is no Service \"nobody\"") !=
        std::string::npos);
  CHECK(condition()["lastTransitionTime"] == accepted_at);  // it moves with the status alone
  CHECK(said().size() == 1);
}

TEST_CASE_FIXTURE(Fixture, "a warning goes when the Service that was missing comes") {
  Json object = policy("10.0.0.0/8");
  object["spec"]["targetRefs"] = {{{"group", ""}, {"kind", "Service"}, {"name", "web"}}};
  apply(kPolicy, object);
  settle();
  CHECK(condition()["reason"] == "AcceptedWithWarnings");
  clock.advance(seconds(5));
  apply("/api/v1/namespaces/shop/services/web",
        {{"apiVersion", "v1"},
         {"kind", "Service"},
         {"metadata", {{"namespace", "shop"}, {"name", "web"}, {"uid", "u2"}}},
         {"spec", {{"clusterIP", "10.96.0.1"}, {"ports", {{{"port", 80}}}}}}});
  settle();
  CHECK(condition()["reason"] == "Accepted");
}

TEST_CASE_FIXTURE(Fixture, "what others have written into the status stays as it is") {
  Json object = policy("10.0.0.0/8");
  object["status"] = {{"observedGeneration", "7"},
                      {"conditions",
                       {{{"type", "Reconciled"}, {"status", "True"}, {"extra", 1}},
                        {{"type", "nodemesh.dev/Accepted"}, {"status", "False"}},
                        {{"type", "WaypointAccepted"}, {"status", "False"}}}}};
  apply(kPolicy, object);
  settle();
  REQUIRE(conditions().size() == 3);
  CHECK(conditions()[0] == object["status"]["conditions"][0]);
  CHECK(condition()["status"] == "True");
  CHECK(conditions()[2] == object["status"]["conditions"][2]);
  CHECK(api.objects.at(kPolicy)["status"]["observedGeneration"] == "7");
  // And nothing but the status was sent.
  for (const auto& line : api.log)
    CHECK((line.starts_with("GET ") || line == std::string("PATCH ") + kPolicy + "/status"));
}

TEST_CASE_FIXTURE(Fixture,
                  "what is said already is not written again, by nobody, not after a change of leader") {
  apply(kPolicy, policy("10.0.0.300"));
  settle();
  watch(kPolicy);
  settle();
  CHECK(api.count("PATCH") == 1);
  PolicyStatuses next(reactor, clock, api, events, {}, {.gap = milliseconds(0)});
  kube::Store its(translate::kinds());
  auto read = kube::make_api_object(*kube::parse_json(api.objects.at(kPolicy).dump()), "AuthorizationPolicy",
                                    "security.istio.io/v1");
  next.note(*read);
  its.upsert(std::move(read));
  next.update(its);
  CHECK(next.idle());
  CHECK(api.count("PATCH") == 1);
}

TEST_CASE_FIXTURE(Fixture,
                  "a status that somebody else writes over meanwhile is read again and written in time") {
  apply(kPolicy, policy("10.0.0.0/8"));
  reactor.run_once(milliseconds(20));
  REQUIRE(api.asked.size() == 1);
  api.answer();  // it has read
  Json other = api.objects.at(kPolicy);
  other["status"]["conditions"] = {{{"type", "Reconciled"}, {"status", "True"}}};
  api.put(kPolicy, other);
  api.answer();  // a conflict
  CHECK(conditions().size() == 1);
  clock.advance(seconds(2));
  watch(kPolicy);
  settle();
  CHECK(conditions().size() == 2);
  CHECK(condition()["status"] == "True");
}

TEST_CASE_FIXTURE(Fixture, "a judgement of another generation is not written") {
  apply(kPolicy, policy("10.0.0.300"));
  api.put(kPolicy, policy("10.0.0.0/8", 2));  // mended before the write, and the watch lags behind
  settle();
  CHECK(api.count("PATCH") == 0);
  watch(kPolicy);
  settle();
  CHECK(condition()["status"] == "True");
}

TEST_CASE_FIXTURE(Fixture,
                  "against somebody who takes the condition away again and again the writes get rare") {
  apply(kPolicy, policy("10.0.0.0/8"));
  for (int second = 0; second < 3600; ++second) {
    settle();
    Json bare = api.objects.at(kPolicy);
    bare["status"] = Json::object();
    apply(kPolicy, bare);
    clock.advance(seconds(1));
  }
  CHECK(api.count("PATCH") > 8);
  CHECK(api.count("PATCH") < 24);
}

TEST_CASE_FIXTURE(Fixture, "a policy that is gone, or another of its name, is not written to") {
  apply(kPolicy, policy("10.0.0.300"));
  api.objects.erase(kPolicy);
  settle();
  CHECK(api.count("PATCH") == 0);
  CHECK(statuses.idle());
  apply(kPolicy, policy("10.0.0.300"));
  api.objects.at(kPolicy)["metadata"]["uid"] = "u2";
  settle();
  CHECK(api.count("PATCH") == 0);
}

TEST_CASE("a write that was put off for long keeps no other waiting") {
  io::Reactor reactor;
  ManualClock clock;
  std::vector<std::string> order;
  PacedWrites writes(reactor, clock, {.gap = milliseconds(0)}, [&](const PacedWrites::Key& key, auto done) {
    order.push_back(std::get<2>(key));
    done(PacedWrites::Outcome::done);
  });
  for (const char* name : {"a", "a", "b"}) {
    writes.want({"shop", "Policy", name});
    for (int turns = 0; turns < 3; ++turns) reactor.run_once(milliseconds(0));
  }
  CHECK(order == std::vector<std::string>{"a", "b"});
  clock.advance(seconds(1));
  writes.want({"shop", "Policy", "c"});
  for (int turns = 0; turns < 4; ++turns) reactor.run_once(milliseconds(0));
  CHECK(order == std::vector<std::string>{"a", "b", "a", "c"});
}

TEST_CASE("one tenant's thousands of objects do not keep another's waiting") {
  io::Reactor reactor;
  ManualClock clock;
  std::vector<std::string> order;
  PacedWrites writes(reactor, clock, {.gap = milliseconds(0)}, [&](const PacedWrites::Key& key, auto done) {
    order.push_back(std::get<0>(key));
    done(PacedWrites::Outcome::done);
  });
  for (int i = 0; i < 2000; ++i) writes.want({"big", "Policy", std::to_string(i)});
  writes.want({"small", "Policy", "one"});
  writes.want({"alpha", "Policy", "one"});
  auto until = Monotonic::now() + seconds(10);
  while (order.size() < 4 && Monotonic::now() < until) reactor.run_once(milliseconds(2));
  CHECK(std::ranges::count(std::span(order).first(4), "small") == 1);
  CHECK(std::ranges::count(std::span(order).first(4), "alpha") == 1);
}

TEST_CASE("an Event is said once, by all replicas together, and not without end") {
  ManualClock clock;
  test::FakeApi api;
  EventPoster one(clock, api, "one"), two(clock, api, "two");
  Regarding about{"v1", "Pod", "mesh", "agent-1", "u1"};
  one.warn(about, "Refused", "Sign", "why");
  one.warn(about, "Refused", "Sign", "why");
  two.warn(about, "Refused", "Sign", "why");
  CHECK(api.count("POST") == 2);
  api.answer_all();
  CHECK(api.objects.size() == 1);
  for (int i = 0; i < 100; ++i) one.warn(about, "Refused", "Sign", std::to_string(i));
  CHECK(api.count("POST") == 11);
  CHECK(one.left_out() == 91);
  one.warn({"v1", "Pod", "shop", "web-1", "u2"}, "Refused", "Sign", "of another tenant");
  CHECK(api.count("POST") == 12);
  clock.advance(seconds(10));
  one.warn(about, "Refused", "Sign", "later");
  CHECK(api.count("POST") == 13);
  // Of a cluster-scoped object in namespace default, and cut between characters.
  clock.advance(seconds(10));
  std::string hostile = "\xff" + std::string(1022, 'x') + "\xc3\xbc";
  one.warn({"v1", "Node", "", "n1", "u"}, "Refused", "Sign", hostile);
  Json sent = parse_object(api.asked.back().body);
  CHECK(api.asked.back().path == "/apis/events.k8s.io/v1/namespaces/default/events");
  CHECK(sent["note"].get<std::string>().ends_with('x'));
}

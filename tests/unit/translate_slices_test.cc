// WorkloadSlices as they are written: which slice a change touches, in which order, and what becomes of
// answers.
#include <doctest/doctest.h>

#include <fmt/format.h>

#include <deque>
#include <nlohmann/json.hpp>
#include <set>

#include "translate/slice_publisher.h"
#include "translate/translate.h"

using namespace nodemesh;
using namespace nodemesh::translate;
using nlohmann::json;

namespace {

using Pods = std::vector<model::Shared<model::Workload>>;

model::Workload pod(int number) {
  std::string n = std::to_string(number);
  std::string padded = std::string(4 - std::min<size_t>(4, n.size()), '0') + n;
  model::Workload made{.uid = "uid" + padded,
                       .ns = "shop",
                       .name = "web-" + n,
                       .service_account = "web",
                       .node = "node1",
                       .addresses = {Addr::v4(10, 244, static_cast<uint8_t>(number / 256),
                                              static_cast<uint8_t>(number % 256))},
                       .labels = {{"app", "web"}, {"pod-template-hash", n}},
                       .workload_name = "web",
                       .workload_type = "deployment"};
  made.mesh = model::Mesh::hbone;
  return made;
}

Pods pods(int first, int last) {
  Pods out;
  for (int i = first; i <= last; ++i) out.push_back(std::make_shared<const model::Workload>(pod(i)));
  return out;
}

// As the API server would answer.
void carry_out(HeldSlices& held, const std::vector<SliceChange>& changes) {
  for (const auto& change : changes) {
    if (change.verb == SliceChange::Verb::remove) {
      held.erase(change.number);
    } else {
      held[change.number] = {change.spec, "v"};
    }
  }
}

std::set<uint32_t> numbers(const std::vector<SliceChange>& changes) {
  std::set<uint32_t> out;
  for (const auto& change : changes) out.insert(change.number);
  return out;
}

// An API server with objects in memory, that answers when told.
class FakeApi final : public SliceApi {
 public:
  std::map<std::string, std::pair<std::string, json>> objects;  // version and object, by name
  std::deque<std::move_only_function<void()>> answers;
  int next_version = 1;
  int refuse_with = 0;
  std::vector<std::string> log;

  void call(Verb verb, const std::string& name, std::string body, Done done) override {
    answers.push_back([this, verb, name, body = std::move(body), done = std::move(done)]() mutable {
      done(answer(verb, name, body));
    });
  }
  bool step() {
    if (answers.empty()) return false;
    auto one = std::move(answers.front());
    answers.pop_front();
    one();
    return true;
  }
  // Somebody else's doing.
  void meddle(const std::string& name, const json& spec) {
    auto& [version, object] = objects[name];
    version = std::to_string(next_version++);
    object["spec"] = spec;
    object["metadata"] = {{"name", name}, {"resourceVersion", version}};
  }

 private:
  Reply answer(Verb verb, const std::string& name, const std::string& body) {
    static constexpr const char* kNames[] = {"get", "create", "replace", "remove"};
    log.push_back(std::string(kNames[static_cast<int>(verb)]) + " " + name);
    if (refuse_with) return {refuse_with, "no"};
    auto found = objects.find(name);
    if (verb == Verb::get) {
      if (found == objects.end()) return {404, ""};
      return {200, found->second.second.dump()};
    }
    if (verb == Verb::create && found != objects.end()) return {409, ""};
    if (verb != Verb::create && found == objects.end()) return {404, ""};
    json sent = json::parse(body);
    if (verb == Verb::remove) {
      if (sent["preconditions"]["resourceVersion"] != found->second.first) return {409, ""};
      objects.erase(found);
      return {200, "{}"};
    }
    if (verb == Verb::replace && sent["metadata"]["resourceVersion"] != found->second.first) return {409, ""};
    auto version = std::to_string(next_version++);
    sent["metadata"]["resourceVersion"] = version;
    objects[name] = {version, sent};
    return {200, sent.dump()};
  }
};

struct World {
  io::Reactor reactor;
  FakeApi api;
  SlicePublisher publisher{reactor, api, "node1"};
  kube::Store store{kinds()};

  World() { watch(); }
  // The store catches up with the API server.
  void watch() {
    std::string text = "apiVersion: v1\nkind: Node\nmetadata: {name: node1, uid: node-uid}\n";
    for (const auto& [name, object] : api.objects) {
      json whole = object.second;
      whole["apiVersion"] = "nodemesh.dev/v1alpha1";
      whole["kind"] = "WorkloadSlice";
      text += "---\n" + whole.dump() + "\n";
    }
    store.set_file("api", kube::parse_manifest(text, "api"));
    publisher.observe(store);
  }
  // Runs until nothing is left to do.
  bool settle() {
    auto deadline = Monotonic::now() + seconds(10);
    while (Monotonic::now() < deadline) {
      while (api.step()) {
      }
      if (publisher.settled()) return true;
      reactor.run_once(milliseconds(20));
    }
    return false;
  }
  std::set<std::string> names(const std::string& slice) const {
    std::set<std::string> out;
    auto found = api.objects.find(slice);
    if (found == api.objects.end()) return out;
    for (const auto& one : found->second.second["spec"]["pods"]) out.insert(one["name"]);
    return out;
  }
};

}  // namespace

TEST_CASE("40 pods fill three slices of at most 16, and slice 0, which says that all are there, comes last") {
  auto changes = plan_slices("node1", pods(1, 40), {});
  REQUIRE(changes.size() == 3);
  CHECK(numbers(changes) == std::set<uint32_t>{0, 1, 2});
  CHECK(changes.back().number == 0);
  size_t named = 0;
  for (const auto& change : changes) {
    CHECK(change.verb == SliceChange::Verb::create);
    CHECK(change.spec.pods.size() <= kPodsPerSlice);
    CHECK(change.spec.complete == (change.number == 0));
    CHECK(change.spec.templates.size() == 1);  // the roll-out's hash makes no template of its own
    named += change.spec.pods.size();
  }
  CHECK(named == 40);
}

TEST_CASE("a node's slices are not complete while its first mesh pod has no address") {
  HeldSlices held;
  auto all = pods(1, 1);
  auto plain = *all[0];
  plain.mesh = model::Mesh::none;
  all[0] = std::make_shared<const model::Workload>(plain);
  carry_out(held, plan_slices("node1", all, held));
  REQUIRE(held.at(0).spec.complete);
  auto young = pod(2);
  young.addresses.clear();
  all.push_back(std::make_shared<const model::Workload>(young));
  carry_out(held, plan_slices("node1", all, held));
  CHECK_FALSE(held.at(0).spec.complete);
  CHECK(held.at(0).spec.pods.size() == 1);
  CHECK(plan_slices("node1", all, held).empty());
  all[1] = std::make_shared<const model::Workload>(pod(2));
  carry_out(held, plan_slices("node1", all, held));
  CHECK(held.at(0).spec.complete);
  // With one named the node is not taken for plain: the next ones cost no write.
  young.uid = "young";
  all.push_back(std::make_shared<const model::Workload>(young));
  CHECK(plan_slices("node1", all, held).empty());
  // One that opts out, and one of another node, are waited for by nobody.
  held.clear();
  young.mesh = model::Mesh::none;
  all = {std::make_shared<const model::Workload>(young)};
  young.mesh = model::Mesh::hbone;
  young.node = "node2";
  all.push_back(std::make_shared<const model::Workload>(young));
  carry_out(held, plan_slices("node1", all, held));
  CHECK(held.at(0).spec.complete);
}

TEST_CASE("a node without pods says so, with an empty slice that is complete") {
  auto changes = plan_slices("node1", {}, {});
  REQUIRE(changes.size() == 1);
  CHECK(changes[0].spec.complete);
  CHECK(changes[0].spec.pods.empty());
  HeldSlices held;
  carry_out(held, changes);
  CHECK(plan_slices("node1", {}, held).empty());
}

TEST_CASE("a change of one pod rewrites its slice alone, and pods keep their places") {
  HeldSlices held;
  carry_out(held, plan_slices("node1", pods(1, 40), {}));
  CHECK(plan_slices("node1", pods(1, 40), held).empty());
  auto changed = pods(1, 40);
  auto one = *changed[20];
  one.mesh = model::Mesh::none;
  changed[20] = std::make_shared<const model::Workload>(one);
  auto changes = plan_slices("node1", changed, held);
  REQUIRE(changes.size() == 1);
  CHECK(changes[0].verb == SliceChange::Verb::replace);
  CHECK(changes[0].resource_version == "v");
  CHECK(changes[0].spec.pods.size() == held[changes[0].number].spec.pods.size());
  carry_out(held, changes);
  // A pod that is replaced leaves a gap, and the newcomer takes it: one write.
  changed.erase(changed.begin());
  changed.push_back(std::make_shared<const model::Workload>(pod(99)));
  CHECK(plan_slices("node1", changed, held).size() == 1);
}

TEST_CASE("an emptied slice is removed, slice 0 stays") {
  HeldSlices held;
  carry_out(held, plan_slices("node1", pods(1, 40), {}));
  auto changes = plan_slices("node1", {}, held);
  REQUIRE(changes.size() == 3);
  CHECK(changes[0].verb == SliceChange::Verb::remove);
  CHECK(changes[1].verb == SliceChange::Verb::remove);
  CHECK(changes[2].number == 0);
  CHECK(changes[2].spec.complete);
}

TEST_CASE("pods in the host's network, without an address or on another node are not written") {
  Pods all = pods(1, 3);
  auto host = *all[0], young = *all[1], elsewhere = *all[2];
  host.host_network = true;
  young.addresses.clear();
  elsewhere.node = "node2";
  auto changes = plan_slices(
      "node1",
      {std::make_shared<const model::Workload>(host), std::make_shared<const model::Workload>(young),
       std::make_shared<const model::Workload>(elsewhere)},
      {});
  REQUIRE(changes.size() == 1);
  CHECK(changes[0].spec.pods.empty());
}

TEST_CASE("a pod with labels without end costs a slice no more than a bounded number of bytes") {
  auto hostile = pod(1);
  model::Labels::Map labels;
  for (int i = 0; i < 20000; ++i) labels.emplace("label-" + std::to_string(i), std::string(63, 'x'));
  hostile.labels = std::move(labels);
  auto changes = plan_slices("node1", {std::make_shared<const model::Workload>(hostile)}, {});
  CHECK(slice_json(changes[0].spec, 0, "", "").size() < 64 << 10);
}

TEST_CASE("a Pod whose labels do not fit into a slice is told which other nodes do not hear of") {
  auto statuses = [](size_t labels, bool cluster) {
    json pod = {
        {"apiVersion", "v1"},
        {"kind", "Pod"},
        {"metadata", {{"name", "web"}, {"namespace", "shop"}, {"labels", {{"pod-template-hash", "7"}}}}},
        {"spec", {{"nodeName", "node1"}, {"containers", json::array()}}}};
    for (size_t i = 0; i < labels; ++i)
      pod["metadata"]["labels"][fmt::format("label-{:03}", i)] = std::string(55, 'x');  // 64 bytes each
    kube::Store store(kinds());
    store.set_file("x",
                   kube::parse_manifest(
                       "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n---\n" + pod.dump(), "x"));
    std::string out;
    for (const auto& status : translate::translate(store, {}, {.node = "node1", .cluster = cluster}).statuses)
      for (const auto& problem : status.problems) out += status.name + ": " + problem.message + "\n";
    return out;
  };
  CHECK(statuses(256, true) == "");
  CHECK(statuses(258, true) ==
        "web: the Pod has more than 16 KiB of labels; other nodes do not hear of \"label-256\" and those "
        "behind "
        "it\n");
  CHECK(statuses(258, false) == "");  // a folder has the Pods themselves
}

TEST_CASE("what is written is read back as it was, and is refused under another node's name") {
  auto spec = plan_slices("node1", pods(1, 16), {})[0].spec;
  auto manifest = kube::parse_manifest(slice_json(spec, 0, "node-uid", "7"), "x");
  REQUIRE(manifest.objects.size() == 1);
  CHECK(manifest.objects[0]->owners[0].kind == "Node");
  kube::Store store(kinds());
  store.set_file("x", std::move(manifest));
  const auto* entry = store.find("WorkloadSlice", "", "node1-0");
  REQUIRE(entry != nullptr);
  CHECK(static_cast<const WorkloadSliceSpec&>(*entry->decoded) == spec);
  CHECK(slice_number("node1", "node1-0") == 0);
  CHECK(slice_number("a", "a-1-0") == std::nullopt);
  CHECK(slice_number("a-1", "a-1-0") == 0);
  CHECK(slice_number("node1", "node1-") == std::nullopt);
  CHECK(slice_number("node1", "node1-007") == std::nullopt);
  CHECK(slice_number("node1", "node1--1") == std::nullopt);
}

TEST_CASE_FIXTURE(World, "the first change is written at once, those that follow together") {
  publisher.set_pods(pods(1, 1));
  CHECK(api.answers.size() == 1);
  while (api.step()) {
  }
  CHECK(names("node1-0").size() == 1);
  for (int i = 2; i <= 9; ++i) publisher.set_pods(pods(1, i));
  CHECK(api.answers.empty());
  REQUIRE(settle());
  CHECK(names("node1-0").size() == 9);
  CHECK(publisher.writes() == 2);
  CHECK(api.objects["node1-0"].second["metadata"]["ownerReferences"][0]["uid"] == "node-uid");
}

TEST_CASE_FIXTURE(World, "news of our own writes cause none") {
  publisher.set_pods(pods(1, 20));
  REQUIRE(settle());
  auto old = api.objects;
  publisher.set_pods(pods(1, 21));
  REQUIRE(settle());
  auto writes = publisher.writes();
  auto now = std::exchange(api.objects, old);  // the watch lags behind
  watch();
  api.objects = now;
  watch();
  REQUIRE(settle());
  CHECK(publisher.writes() == writes);
}

TEST_CASE_FIXTURE(World, "what somebody else changes or deletes is put right") {
  publisher.set_pods(pods(1, 3));
  REQUIRE(settle());
  watch();
  api.meddle("node1-0", {{"node", "node1"}});
  publisher.set_pods(pods(1, 4));  // before the watch has told: a conflict
  REQUIRE(settle());
  CHECK(names("node1-0").size() == 4);
  watch();
  api.meddle("node1-0", {{"node", "node1"}, {"pods", "nonsense"}});
  publisher.set_pods(pods(1, 5));
  REQUIRE(settle());
  CHECK(names("node1-0").size() == 5);
  watch();
  api.objects.clear();
  watch();
  REQUIRE(settle());
  CHECK(names("node1-0").size() == 5);
}

TEST_CASE_FIXTURE(World, "a slice that somebody broke is put right without waiting for a pod's change") {
  publisher.set_pods(pods(1, 3));
  REQUIRE(settle());
  watch();
  api.meddle("node1-0", {{"node", "node1"}, {"pods", "nonsense"}});
  watch();
  REQUIRE(settle());
  CHECK(names("node1-0").size() == 3);
  api.meddle("node1-4", {{"node", "node1"}, {"pods", "nonsense"}});  // one that was never good
  watch();
  REQUIRE(settle());
  CHECK(!api.objects.contains("node1-4"));
  auto writes = publisher.writes();
  watch();
  REQUIRE(settle());
  CHECK(publisher.writes() == writes);
}

TEST_CASE_FIXTURE(World, "late news of a slice that was removed cause no write") {
  publisher.set_pods(pods(1, 17));
  REQUIRE(settle());
  watch();
  auto old = api.objects;
  publisher.set_pods(pods(1, 1));  // empties a slice
  REQUIRE(settle());
  REQUIRE(api.objects.size() == 1);
  auto writes = publisher.writes();
  auto now = std::exchange(api.objects, old);  // the watch lags behind
  watch();
  api.objects = now;
  REQUIRE(settle());
  CHECK(publisher.writes() == writes);
  // Made anew before the news of the removal: they are not of this one.
  publisher.set_pods(pods(1, 17));
  REQUIRE(settle());
  writes = publisher.writes();
  now = std::exchange(api.objects, old);
  watch();
  api.objects.erase("node1-1");
  watch();
  api.objects = now;
  watch();
  REQUIRE(settle());
  CHECK(publisher.writes() == writes);
}

TEST_CASE_FIXTURE(World, "slices that a process before left are taken over") {
  api.meddle("node1-0", {{"node", "node1"}});
  api.meddle("node1-7", {{"node", "node1"}});
  watch();
  publisher.set_pods(pods(1, 1));
  REQUIRE(settle());
  CHECK(names("node1-0").size() == 1);
  CHECK(!api.objects.contains("node1-7"));
}

TEST_CASE_FIXTURE(World, "a refusal is told and tried again later") {
  api.refuse_with = 403;
  publisher.set_pods(pods(1, 1));
  api.step();
  CHECK(publisher.problem() == "WorkloadSlice node1-0 cannot be written: status 403, no");
  CHECK(!publisher.settled());
  api.refuse_with = 0;
  REQUIRE(settle());
  CHECK(publisher.problem().empty());
  CHECK(names("node1-0").size() == 1);
}

TEST_CASE("nothing is written before the Node that is to own the slices is known") {
  io::Reactor reactor;
  FakeApi api;
  SlicePublisher publisher(reactor, api, "node1");
  publisher.set_pods(pods(1, 1));
  CHECK(api.answers.empty());
}

TEST_CASE("under churn slices cost at most a fifth of the bytes of EndpointSlices") {
  HeldSlices held;
  Pods now = pods(1, 32);
  carry_out(held, plan_slices("node1", now, held));
  size_t ours = 0, theirs = 0;
  json endpoints = json::array();  // of a Service with 100 endpoints, 32 of them here
  for (int i = 0; i < 100; ++i) {
    endpoints.push_back({{"addresses", {"10.244.1." + std::to_string(i)}},
                         {"conditions", {{"ready", true}, {"serving", true}, {"terminating", false}}},
                         {"nodeName", "node1"},
                         {"targetRef",
                          {{"kind", "Pod"},
                           {"name", "web-7d4b9c-abcde"},
                           {"namespace", "shop"},
                           {"uid", std::string(36, 'u')}}},
                         {"zone", "zone-a"}});
  }
  for (int i = 0; i < 32; ++i) {
    // A pod is replaced. Endpoints change three times: terminating, gone with a new one unready, ready.
    now[static_cast<size_t>(i)] = std::make_shared<const model::Workload>(pod(100 + i));
    auto changes = plan_slices("node1", now, held);
    for (const auto& change : changes) ours += slice_json(change.spec, change.number, "uid", "1").size();
    carry_out(held, changes);
    theirs += 3 * endpoints.dump().size();
  }
  MESSAGE(ours, " bytes to ", theirs);
  CHECK(ours * 5 <= theirs);
}

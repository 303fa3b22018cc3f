#include <doctest/doctest.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <map>
#include <set>
#include <sstream>

#include "ctl/check.h"
#include "ctl/check_words.h"
#include "ctl/commands.h"
#include "ctl/json_at.h"
#include "ctl/manifest_json.h"

using namespace nodemesh;
using namespace nodemesh::ctl;

namespace {

namespace fs = std::filesystem;

std::string read_text(const fs::path& path) {
  std::ifstream in(path);
  return {std::istreambuf_iterator<char>(in), {}};
}

Json read_yaml(const fs::path& path) {
  auto documents = json_of_yaml(read_text(path), path.filename());
  REQUIRE_MESSAGE(documents.has_value(), (documents ? "" : documents.error().message));
  return documents->at(0);
}

fs::path here() {
  return fs::path(__FILE__).parent_path();
}

// Which list an object of a fixture is of.
std::string list_of(const Json& object) {
  auto kind = text_of(object, "kind"), name = text_of(object, "metadata", "name");
  if (kind == "ConfigMap" && name == "istio") return "meshconfig";
  if (kind == "ConfigMap" && name == "cilium-config") return "cilium";
  if (kind == "Lease" && ns_of(object) == "kube-node-lease") return "nodeleases";
  for (const auto& source : fact_sources()) {
    if (kind == source.kind) return source.name;
  }
  FAIL("no list of kind " << kind);
  return "";
}

void change(Facts& facts, const Json& by) {
  for (Json object : items_of(by, "objects")) {
    auto& items = facts.lists[list_of(object)].items;
    auto same = [&](const Json& other) { return name_of(other) == name_of(object); };
    auto found = std::ranges::find_if(items, same);
    if (flag_of(object, "gone")) {
      REQUIRE(found != items.end());
      items.erase(found);
    } else if (found == items.end()) {
      items.push_back(object);
    } else {
      found->merge_patch(object);
    }
  }
  for (const auto& list : items_of(by, "not_served")) facts.lists[list.get<std::string>()] = {};
  const auto& more = json_at(by, "facts");
  if (more.contains("server")) facts.server = more["server"];
  if (more.contains("cacerts_exists")) facts.cacerts_exists = more["cacerts_exists"];
  if (more.contains("cacerts_keys")) facts.cacerts_keys = more["cacerts_keys"];
  if (more.contains("rights")) {
    facts.rights.clear();
    for (const auto& one : more["rights"])
      facts.rights.push_back({text_of(one, "verb"), text_of(one, "group"), text_of(one, "resource"), "",
                              flag_of(one, "allowed")});
  }
  if (more.contains("agents")) {
    facts.agents.clear();
    for (const auto& one : more["agents"])
      facts.agents.push_back({text_of(one, "node"), "", json_at(one, "status"), json_at(one, "certs")});
  }
}

Facts base() {
  Facts facts{.meshctl_version = "0.1.0", .now = 1767268800};  // noon of 2026-01-01
  for (const auto& source : fact_sources()) facts.lists[source.name].served = true;
  change(facts, read_yaml(here() / "checks/base.yaml"));
  return facts;
}

Json fixtures() {
  Json all = Json::object();
  for (const char* area : {"cluster", "node", "install", "config", "traffic"})
    all.update(read_yaml(here() / "checks" / (std::string(area) + ".yaml")));
  return all;
}

bool has_run(const CheckResult& result, const std::string& id) {
  return std::ranges::none_of(result.not_checked, [&](const NotChecked& one) { return one.id == id; });
}

std::vector<Finding> of(const CheckResult& result, const std::string& id) {
  std::vector<Finding> out;
  std::ranges::copy_if(result.findings, std::back_inserter(out),
                       [&](const Finding& one) { return one.id == id; });
  return out;
}

std::string all_said(const CheckResult& result) {
  std::string out;
  for (const auto& one : result.findings) out += one.id + " " + one.object + ": " + one.message + "\n";
  return out;
}

}  // namespace

TEST_CASE("a cluster in which nothing is wrong has no finding, before and after the installation") {
  for (bool pre : {false, true}) {
    auto result = run_checks(base(), pre);
    CHECK_MESSAGE(result.findings.empty(), all_said(result));
    CHECK(result.not_checked.empty());
    CHECK(result.passed > 40);
  }
}

TEST_CASE("every check has a fixture that fires it and one that does not") {
  auto all = fixtures();
  CHECK(checks().size() >= 40);
  CHECK(all.size() == checks().size());
  for (const auto& check : checks()) {
    INFO(check.id);
    REQUIRE(all.contains(check.id));
    const auto& fixture = all[check.id];
    bool pre = check.when == When::pre;

    Facts wrong = base();
    change(wrong, json_at(fixture, "fires"));
    auto fired = of(run_checks(wrong, pre), check.id);
    REQUIRE_MESSAGE(!fired.empty(), all_said(run_checks(wrong, pre)));
    CHECK(fired[0].object == text_of(fixture, "at"));
    CHECK(fired[0].severity == check.severity);
    bool names_command = fired[0].hint.contains("kubectl ") || fired[0].hint.contains("meshctl ");
    CHECK_MESSAGE(names_command, fired[0].hint);
    CHECK(!fired[0].message.empty());

    REQUIRE(fixture.contains("quiet"));
    Facts right = base();
    change(right, fixture["quiet"]);
    auto result = run_checks(right, pre);
    CHECK_MESSAGE(of(result, check.id).empty(), all_said(result));
    CHECK(has_run(result, check.id));
  }
}

TEST_CASE("with interop.istio a ztunnel is an error only on a node that has an agent, which is named") {
  Facts facts = base();
  change(facts, json_at(fixtures(), "NM1005", "quiet"));
  CHECK(of(run_checks(facts, false), "NM1005").empty());
  change(facts, Json::parse(R"({"objects": [
    {"kind": "Pod", "metadata": {"name": "ztunnel-1", "namespace": "istio-system"}, "spec": {"nodeName": "a"}}]})"));
  auto fired = of(run_checks(facts, false), "NM1005");
  REQUIRE(fired.size() == 1);
  CHECK(fired[0].message.starts_with("node a has both"));
}

// The base cluster with istiod for its authority.
Facts with_istiod() {
  const Facts plain = base();
  Facts facts = plain;
  change(facts, Json::parse(R"({"objects": [
    {"kind": "DaemonSet", "metadata": {"name": "nodemesh-agent", "namespace": "nodemesh-system"}, "spec": {"template": {"spec": {
      "containers": [{"name": "proxy", "args": ["--ca-address=istiod.istio-system.svc:15012", "--ca-cluster-id=Kubernetes"]}],
      "volumes": [{"name": "ca-root", "configMap": {"name": "istio-ca-root-cert"}}]}}}},
    {"kind": "ConfigMap", "metadata": {"name": "nodemesh-root-cert", "namespace": "nodemesh-system"}, "gone": true}]})"));
  auto& maps = facts.lists["configmaps"].items;
  for (const auto& map : plain.all("configmaps")) {
    if (text_of(map, "metadata", "name") != "nodemesh-root-cert") continue;
    maps.push_back(map);
    maps.back()["metadata"]["name"] = "istio-ca-root-cert";
  }
  facts.cacerts_exists = true;  // an old one of ours
  return facts;
}

TEST_CASE("with another authority nobody misses our bundle, our Secret or our second replica") {
  Facts facts = with_istiod();
  auto result = run_checks(facts, false);
  CHECK_MESSAGE(result.findings.empty(), all_said(result));
  change(facts, Json::parse(R"({"objects": [
    {"kind": "Deployment", "metadata": {"name": "nodemesh-controller", "namespace": "nodemesh-system"}, "gone": true}]})"));
  result = run_checks(facts, false);
  CHECK_MESSAGE(result.findings.empty(), all_said(result));
}

TEST_CASE("another authority's bundle is looked for by its own name, and its refusal explained") {
  Facts facts = with_istiod();
  std::erase_if(facts.lists["configmaps"].items,
                [](const Json& map) { return text_of(map, "metadata", "name") == "istio-ca-root-cert"; });
  facts.agents.push_back(
      {.node = "a", .certs = Json::parse(R"({"items": [{"identity": "x", "state": "missing",
    "error": "certificate authority refused x: code 16, request impersonation authentication failure"}]})")});
  auto result = run_checks(facts, false);
  auto bundle = of(result, "NM1216"), missing = of(result, "NM1231");
  REQUIRE_MESSAGE((bundle.size() == 1 && missing.size() == 1), all_said(result));
  CHECK(bundle[0].object == "ConfigMap nodemesh-system/istio-ca-root-cert");
  CHECK(missing[0].hint.contains("nodemesh-system/nodemesh-agent"));
  CHECK(missing[0].hint.contains("istiod.istio-system.svc:15012"));
  CHECK(missing[0].hint.contains("\"Kubernetes\""));
}

TEST_CASE("a check whose facts may not be read is not made, and does not pass") {
  for (const auto& check : checks()) {
    INFO(check.id);
    REQUIRE(!check.needs.empty());
    for (std::string_view need : check.needs) {
      Facts facts = base();
      std::string why = "no right to list it";
      if (need == "rights")
        facts.rights_unread = why;
      else if (need == "agents")
        facts.agents_unread = why;
      else if (need == "cacerts")
        facts.cacerts_unread = why;
      else if (need == "server")
        facts.server = nullptr;
      else {
        REQUIRE(facts.lists.contains(need));
        facts.lists.find(need)->second = {.unread = why, .served = true};
      }
      auto result = run_checks(facts, check.when == When::pre);
      CHECK(!has_run(result, check.id));
      CHECK(of(result, check.id).empty());
    }
  }
}

TEST_CASE("objects of any shape make no check fall over") {
  const Json shapes[] = {nullptr, 5, "text", Json::array({1, nullptr, {{"a", 1}}}), Json::object(), true};
  for (const auto& shape : shapes) {
    Facts facts = base();
    facts.server = shape;
    for (auto& [name, list] : facts.lists) {
      list.items.push_back(shape);
      for (const char* field : {"metadata", "spec", "status", "data", "webhooks"}) {
        Json odd = {{"kind", "Pod"}, {"metadata", {{"name", "odd"}, {"namespace", "shop"}}}};
        odd[field] = shape;
        list.items.push_back(odd);
      }
    }
    facts.agents.push_back({"odd", "", shape, shape});
    CHECK(run_checks(facts, false).passed > 0);
    CHECK(run_checks(facts, true).passed > 0);
  }
}

TEST_CASE("ids are in order, of one form, and never twice") {
  std::set<std::string> seen;
  for (const auto& check : checks()) {
    CHECK(std::string_view(check.id).size() == 6);
    CHECK(seen.insert(check.id).second);
    CHECK(std::string_view(check.explain).find('|') == std::string_view::npos);
  }
}

TEST_CASE("docs/checks.md is what `meshctl check --explain all` prints") {
  CHECK(read_text(here().parent_path().parent_path() / "docs/checks.md") == checks_document());
}

namespace {

// An API server of recorded answers; what it was not told of is not served.
class Recorded final : public ClusterApi {
 public:
  std::map<std::string, ClusterReply, std::less<>> answers;  // by path without query
  ClusterReply call(kube::Verb verb, const std::string& path, const Json& body, std::string_view) override {
    if (verb == kube::Verb::post)
      return {201,
              {{"status", {{"allowed", body["spec"]["resourceAttributes"]["resource"] != "daemonsets"}}}},
              ""};
    auto found = answers.find(path.substr(0, path.find('?')));
    return found == answers.end() ? ClusterReply{404, nullptr, "not found"} : found->second;
  }
};

}  // namespace

TEST_CASE("facts: what is listed, what is not served, and what may not be read") {
  Recorded api;
  api.answers["/version"] = {200, {{"gitVersion", "v1.34.0"}}, ""};
  api.answers["/api/v1/nodes"] = {
      200, {{"items", {{{"metadata", {{"name", "a"}, {"managedFields", {1}}}}}}}}, ""};
  api.answers["/api/v1/pods"] = {403, nullptr, "pods is forbidden"};
  api.answers["/api/v1/services"] = {500, nullptr, "GET /api/v1/services: broken"};
  auto facts = gather_facts(api, "nodemesh-system", {.pre = true, .now = 1});
  CHECK(facts.all("nodes").at(0)["kind"] == "Node");
  CHECK(!facts.all("nodes").at(0)["metadata"].contains("managedFields"));
  CHECK(facts.lists.find("pods")->second.unread == "no right to list pods");
  CHECK(facts.lists.find("services")->second.unread == "GET /api/v1/services: broken");
  CHECK(!facts.served("workloadslices"));
  CHECK(facts.lists.find("workloadslices")->second.unread.empty());
  auto result = run_checks(facts, true);
  REQUIRE(of(result, "NM1003").size() == 1);
  CHECK(of(result, "NM1003")[0].message == "you may not create daemonsets.apps");
  CHECK(!has_run(result, "NM1413"));
}

TEST_CASE("of Secret cacerts only the names of its keys are known, by who wrote them") {
  Recorded api;
  api.answers["/version"] = {200, {{"gitVersion", "v1.34.0"}}, ""};
  auto entry = Json::parse(R"({"fieldsV1":{"f:data":{".":{},"f:ca-cert.pem":{},"f:ca-key.pem":{}}}})");
  api.answers["/api/v1/namespaces/m/secrets/cacerts"] = {
      200, {{"metadata", {{"managedFields", {entry}}}}}, ""};
  auto facts = gather_facts(api, "m", {.now = 1});
  CHECK(facts.cacerts_exists);
  CHECK(facts.cacerts_keys == std::vector<std::string>{"ca-cert.pem", "ca-key.pem"});
  CHECK(of(run_checks(facts, false), "NM1219").size() == 1);
}

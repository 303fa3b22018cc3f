#include <optional>
#include <ostream>

#include <nlohmann/json.hpp>

#include "ctl/commands.h"
#include "ctl/json_at.h"
#include "ctl/nodes.h"
#include "ctl/structured.h"
#include "ctl/views.h"

namespace nodemesh::ctl {
namespace {

// `version` of nodemesh_build_info in an exposition.
std::string version_in(std::string_view metrics) {
  static constexpr std::string_view kBefore = "\nnodemesh_build_info{version=\"";
  size_t at = metrics.find(kBefore);
  if (at == metrics.npos) return {};
  metrics.remove_prefix(at + kBefore.size());
  size_t end = metrics.find('"');
  return end == metrics.npos ? std::string() : std::string(metrics.substr(0, end));
}

void note_agents(Context& context, const Targets& targets, nlohmann::json& items) {
  auto answers = ask_targets(context, targets, "GET", "/version", seconds(5));
  for (size_t i = 0; i < answers.size(); ++i) {
    const auto& name = targets.list[i].name;
    if (!answers[i] || answers[i]->status != 200) {
      context.warn(answers[i] ? "node " + name + " does not tell its version" : answers[i].error().message);
      continue;
    }
    auto body = parse_json(answers[i]->body);
    auto node = text_at(body, "/node"), agent = text_at(body, "/version");
    items.push_back({{"node", node.empty() ? name : node}, {"version", agent}});
    if (agent != NODEMESH_VERSION)
      context.warn("skew: node " + name + " runs " + agent + ", this is meshctl " NODEMESH_VERSION);
  }
}

void note_controllers(Context& context, const kube::Access& access, nlohmann::json& items) {
  auto pods = component_pods(*open_cluster(access), context.ns, "controller");
  if (!pods) return context.warn(pods.error().message);
  for (const auto& pod : *pods) {
    auto name = text_at(pod, "/metadata/name");
    if (text_at(pod, "/status/phase") != "Running") continue;
    auto answer = http_through_api_server(access, {context.ns, name, kControllerProcessPort}, "GET",
                                          "/metrics", seconds(5));
    if (!answer) {
      context.warn(answer.error().message);
      continue;
    }
    auto version = version_in(answer->body);
    if (version.empty()) {
      context.warn("controller " + name + " does not tell its version");
      continue;
    }
    items.push_back({{"pod", name}, {"version", version}});
    if (version != NODEMESH_VERSION)
      context.warn("skew: controller " + name + " runs " + version + ", this is meshctl " NODEMESH_VERSION);
  }
}

bool all_are_ours(const nlohmann::json& items) {
  for (const auto& item : items) {
    if (text_at(item, "/version") != NODEMESH_VERSION) return false;
  }
  return true;
}

void print(const Context& context, const nlohmann::json& all) {
  context.out << "meshctl " NODEMESH_VERSION "\n";
  for (const auto& item : all["controllers"]) {
    context.out << "controller " << printable(text_at(item, "/version")) << " in "
                << printable(text_at(item, "/pod")) << "\n";
  }
  for (const auto& item : all["items"]) {
    context.out << "agent   " << printable(text_at(item, "/version")) << " on "
                << printable(text_at(item, "/node")) << "\n";
  }
}

}  // namespace

// An agent that does not answer is no failure here: the client's version was asked for first of all.
int version(Context& context, bool client_only) {
  auto none = nlohmann::json::array();
  nlohmann::json all = {{"schema", 1},
                        {"kind", "version"},
                        {"client", NODEMESH_VERSION},
                        {"controllers", none},
                        {"items", none}};
  if (!client_only) {
    auto targets = find_targets(context);
    if (!targets && asks_a_cluster(context)) context.warn(targets.error().message);
    if (targets) note_agents(context, *targets, all["items"]);
    if (targets && targets->cluster) note_controllers(context, *targets->cluster, all["controllers"]);
  }
  all["skew"] = !all_are_ours(all["items"]) || !all_are_ours(all["controllers"]);
  if (context.format == Format::json) {
    context.out << to_json_text(all);
  } else if (context.format == Format::yaml) {
    context.out << to_yaml_text(all);
  } else {
    print(context, all);
  }
  return context.finish();
}

}  // namespace nodemesh::ctl

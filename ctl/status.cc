#include <ostream>

#include <nlohmann/json.hpp>

#include "ctl/commands.h"
#include "ctl/nodes.h"
#include "ctl/structured.h"
#include "ctl/views.h"

namespace nodemesh::ctl {
namespace {

const nlohmann::json kNone = nlohmann::json::array();

const nlohmann::json& list_of(const nlohmann::json& status, const char* key) {
  if (!status.is_object()) return kNone;
  auto found = status.find(key);
  return found != status.end() && found->is_array() ? *found : kNone;
}

std::string seconds_at(const nlohmann::json& node, std::string_view pointer) {
  return text_at(node, pointer).empty() ? "" : human_seconds(number_at(node, pointer));
}

bool is_ready(const nlohmann::json& status) {
  return text_at(status, "/ready") == "true";
}

void print_table(Context& context, const nlohmann::json& nodes) {
  Table table({"NODE", "READY", "VERSION", "WARDEN", "GENERATION", "CONFIG AGE", "REJECTED", "UPTIME"});
  for (const auto& node : nodes) {
    bool warden = text_at(node, "/warden/connected") == "true";
    auto rejected = list_of(node, "rejected").size();
    table.add({{text_at(node, "/node")},
               is_ready(node) ? Cell{"yes", Style::good} : Cell{"no", Style::bad},
               {text_at(node, "/version")},
               warden ? Cell{"connected", Style::good} : Cell{"gone", Style::doubtful},
               {text_at(node, "/generation")},
               {seconds_at(node, "/config_age_s")},
               {std::to_string(rejected), rejected ? Style::doubtful : Style::plain},
               {seconds_at(node, "/uptime_s")}});
  }
  context.out << table.render(context.colour);
}

// Whether what is in force is the API server's last word.
void report_source(Context& context, const nlohmann::json& node, const std::string& name) {
  auto age = seconds_at(node, "/config/contact_age_s");
  if (text_at(node, "/config/source") == "snapshot")
    context.warn(name + ": serves what was last read of the API server, " + age + " ago");
  auto config = node.is_object() ? node.find("config") : node.end();
  if (config == node.end()) return;
  for (const auto& trouble : list_of(*config, "troubles")) context.warn(name + ": " + text_at(trouble, ""));
  for (const char* problem : {"/snapshot_problem", "/slices_problem"}) {
    if (auto text = text_at(*config, problem); !text.empty()) context.warn(name + ": " + text);
  }
}

// Everything that is not as it should be, each with where and why.
void report(Context& context, const nlohmann::json& node) {
  auto name = text_at(node, "/node");
  for (const auto& reason : list_of(node, "reasons"))
    context.warn("node " + name + " is not ready: " + text_at(reason, ""));
  report_source(context, node, name);
  for (const auto& object : list_of(node, "rejected")) {
    auto where = text_at(object, "/origin"), field = text_at(object, "/field"), fix = text_at(object, "/fix");
    context.warn(name + ": " + text_at(object, "/kind") + " " + text_at(object, "/namespace") + "/" +
                 text_at(object, "/name") + (where.empty() ? "" : " (" + where + ")") +
                 (field.empty() ? "" : ", " + field) + ": " + text_at(object, "/message") +
                 (fix.empty() ? "" : "; " + fix));
  }
}

}  // namespace

int status(Context& context) {
  auto answers = ask(context, "GET", "/status");
  if (answers.list.empty()) return answers.exit;
  nlohmann::json nodes = nlohmann::json::array();
  for (auto& answer : answers.list) {
    auto found = answer.body.find("status");
    nlohmann::json node =
        found != answer.body.end() && found->is_object() ? *found : nlohmann::json::object();
    node["node"] = answer.node;
    node["version"] = text_at(answer.body, "/version");
    nodes.push_back(std::move(node));
  }
  bool all_ready = true;
  for (const auto& node : nodes) all_ready = all_ready && is_ready(node);
  nlohmann::json all = {{"schema", 1}, {"kind", "status"}, {"items", nodes}};
  if (context.format == Format::json) context.out << to_json_text(all);
  if (context.format == Format::yaml) context.out << to_yaml_text(all);
  if (context.format == Format::table || context.format == Format::wide) print_table(context, nodes);
  for (const auto& node : nodes) report(context, node);
  if (answers.exit) return answers.exit;
  return all_ready ? context.finish() : kFailure;
}

}  // namespace nodemesh::ctl

// `meshctl check`: gathers, judges, prints.
#include <ctime>
#include <ostream>
#include <sstream>

#include <fmt/format.h>

#include "ctl/check.h"
#include "ctl/commands.h"
#include "ctl/json_at.h"
#include "ctl/nodes.h"
#include "ctl/structured.h"
#include "ctl/table.h"

namespace nodemesh::ctl {
namespace {

constexpr int kSchemaVersion = 1;

int explain(Context& context, const std::string& id) {
  if (id == "all") {
    context.out << checks_document();
    return kOk;
  }
  for (const auto& check : checks()) {
    if (id != check.id) continue;
    context.out << fmt::format("{} ({}): {}\n{}\n", check.id, severity_name(check.severity), check.title,
                               check.explain);
    return kOk;
  }
  return context.failed(kUsage, "there is no check " + id, "list them: `meshctl check --explain all`");
}

// What agents say. Their absence is a fact, so errors do not go to the user's terminal.
void ask_agents(const Context& context, Facts& facts) {
  std::ostringstream said;
  Context quiet = {.out = said, .err = said};
  quiet.nodes = context.nodes;
  quiet.run_dir = context.run_dir;
  quiet.run_dir_given = context.run_dir_given;
  quiet.admin = context.admin;
  quiet.kubeconfig = context.kubeconfig;
  quiet.kube_context = context.kube_context;
  quiet.ns = context.ns;
  auto statuses = ask(quiet, "GET", "/status"), certs = ask(quiet, "GET", "/certs");
  for (auto& answer : statuses.list) {
    facts.agents.push_back(
        {answer.node, text_of(answer.body, "version"), json_at(answer.body, "status"), nullptr});
    for (auto& other : certs.list) {
      if (other.node == answer.node) facts.agents.back().certs = std::move(other.body);
    }
  }
  if (facts.agents.empty()) {
    auto text = said.str();
    facts.agents_unread = "no agent answered: " + text.substr(0, text.find('\n'));
  }
}

Json to_json(const CheckResult& result, bool pre) {
  Json findings = Json::array(), left = Json::array();
  size_t errors = 0, warnings = 0;
  for (const auto& one : result.findings) {
    errors += one.severity == Severity::error;
    warnings += one.severity == Severity::warning;
    findings.push_back({{"id", one.id},
                        {"severity", severity_name(one.severity)},
                        {"object", one.object},
                        {"message", one.message},
                        {"hint", one.hint}});
  }
  for (const auto& one : result.not_checked) left.push_back({{"id", one.id}, {"why", one.why}});
  return {{"schema", kSchemaVersion}, {"kind", "check"},         {"pre", pre},       {"findings", findings},
          {"not_checked", left},      {"passed", result.passed}, {"errors", errors}, {"warnings", warnings}};
}

void print(Context& context, const CheckResult& result, size_t errors, size_t warnings) {
  static constexpr Style kStyles[] = {Style::bad, Style::doubtful, Style::plain};
  static constexpr const char* kColours[] = {"\033[31m", "\033[33m", ""};
  for (const auto& one : result.findings) {
    auto rank = static_cast<size_t>(one.severity);
    bool colour = context.colour && kStyles[rank] != Style::plain;
    context.out << (colour ? kColours[rank] : "") << one.id << " " << severity_name(one.severity)
                << (colour ? "\033[0m" : "") << "  " << printable(one.object) << ": "
                << printable(one.message) << "\n      next: " << printable(one.hint) << "\n";
  }
  std::map<std::string, std::vector<std::string>> left;
  for (const auto& one : result.not_checked) left[one.why].push_back(one.id);
  for (const auto& [why, ids] : left)
    context.out << fmt::format("not checked: {} ({})\n", fmt::join(ids, " "), printable(why));
  context.out << fmt::format("{} checks passed, {} not made; {} errors, {} warnings, {} notes\n",
                             result.passed, result.not_checked.size(), errors, warnings,
                             result.findings.size() - errors - warnings);
}

}  // namespace

int check(Context& context, bool pre, const std::string& id) {
  if (!id.empty()) return explain(context, id);
  auto access = cluster_access(context);
  if (!access) return cluster_failed(context, access.error());
  auto api = open_cluster(std::move(*access));
  GatherOptions options{.pre = pre, .now = ::time(nullptr)};
  options.ask_agents = [&context](Facts& facts) { ask_agents(context, facts); };
  auto facts = gather_facts(*api, context.ns, options);
  if (facts.server.is_null()) return cluster_failed(context, error_of(api->get("/version")));
  auto result = run_checks(facts, pre);
  auto all = to_json(result, pre);
  auto errors = all["errors"].get<size_t>(), warnings = all["warnings"].get<size_t>();
  if (context.format == Format::json) context.out << to_json_text(all);
  if (context.format == Format::yaml) context.out << to_yaml_text(all);
  if (context.format == Format::table || context.format == Format::wide)
    print(context, result, errors, warnings);
  context.warnings += static_cast<int>(warnings);
  return errors > 0 ? kFailure : context.finish();
}

}  // namespace nodemesh::ctl

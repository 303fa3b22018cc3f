#include "ctl/check.h"

#include <algorithm>
#include <tuple>

#include <fmt/format.h>

namespace nodemesh::ctl {
namespace {

// Why a check cannot be made; "" when it can.
std::string missing_for(const Check& check, const Facts& facts) {
  for (std::string_view need : check.needs) {
    if (need == "rights") {
      if (!facts.rights_unread.empty()) return facts.rights_unread;
    } else if (need == "agents") {
      if (!facts.agents_unread.empty()) return facts.agents_unread;
    } else if (need == "cacerts") {
      if (!facts.cacerts_unread.empty()) return facts.cacerts_unread;
    } else if (need == "server") {
      if (facts.server.is_null()) return "the API server's version was not read";
    } else {
      auto found = facts.lists.find(need);
      if (found == facts.lists.end()) return fmt::format("{} were not read", need);
      if (!found->second.unread.empty()) return found->second.unread;
    }
  }
  return "";
}

const char* when_text(When when) {
  return when == When::pre         ? "before installation"
         : when == When::installed ? "after installation"
                                   : "always";
}

}  // namespace

std::string_view severity_name(Severity severity) {
  return severity == Severity::error ? "error" : severity == Severity::warning ? "warning" : "info";
}

const std::vector<Json>& Facts::all(std::string_view list) const {
  static const std::vector<Json> kNone;
  auto found = lists.find(list);
  return found == lists.end() ? kNone : found->second.items;
}

bool Facts::served(std::string_view list) const {
  auto found = lists.find(list);
  return found != lists.end() && found->second.served;
}

std::vector<Check> checks() {
  std::vector<Check> all;
  for (auto table : {cluster_checks(), node_checks(), install_checks(), trust_checks(), agent_checks(),
                     policy_checks(), config_checks(), strict_checks(), traffic_checks()})
    all.insert(all.end(), table.begin(), table.end());
  std::ranges::sort(all, {}, [](const Check& check) { return std::string_view(check.id); });
  return all;
}

CheckResult run_checks(const Facts& facts, bool pre) {
  CheckResult result;
  const Cluster cluster(facts);
  for (const auto& check : checks()) {
    if (check.when == (pre ? When::installed : When::pre)) continue;
    if (auto why = missing_for(check, facts); !why.empty()) {
      result.not_checked.push_back({check.id, std::move(why)});
      continue;
    }
    auto before = result.findings.size();
    Found found(result, check.id, check.severity);
    check.run(cluster, found);
    if (result.findings.size() == before) ++result.passed;
  }
  std::ranges::sort(result.findings, {}, [](const Finding& one) {
    return std::tie(one.severity, one.id, one.object, one.message);
  });
  return result;
}

std::string checks_document() {
  std::string out =
      "# What `meshctl check` looks for\n\n"
      "`meshctl check --pre` before an installation, `meshctl check` after it and whenever something is odd; "
      "it only "
      "reads. `meshctl check\n--explain NM1001` says one of these. Ids keep their meaning. What may not be "
      "read is "
      "\"not checked\", never passed. `-o json` has\n`schema` 1. Exit code: 1 with an error, 3 with a "
      "warning "
      "under `--strict`, else 0.\n\n"
      "<!-- Written by `meshctl check --explain all`. -->\n";
  std::string_view area;
  for (const auto& check : checks()) {
    std::string_view now = std::string_view(check.id).substr(0, 4);
    if (now != area) {
      area = now;
      out += fmt::format(
          "\n## {}\n\n| id | severity | when | what | why, and what to do |\n|---|---|---|---|---|\n",
          area == "NM10"   ? "The cluster"
          : area == "NM11" ? "Nodes"
          : area == "NM12" ? "nodemesh itself"
          : area == "NM13" ? "Configuration"
                           : "Traffic that the mesh would refuse or miss");
    }
    out += fmt::format("| {} | {} | {} | {} | {} |\n", check.id, severity_name(check.severity),
                       when_text(check.when), check.title, check.explain);
  }
  return out;
}

}  // namespace nodemesh::ctl

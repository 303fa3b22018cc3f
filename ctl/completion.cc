#include <algorithm>
#include <iterator>
#include <ostream>

#include <CLI/CLI.hpp>

#include "base/log.h"
#include "ctl/check.h"
#include "ctl/commands.h"
#include "ctl/manifests.h"
#include "ctl/nodes.h"
#include "ctl/views.h"

namespace nodemesh::ctl {
namespace {

constexpr std::string_view kBash = R"sh(_meshctl() {
  local IFS=$'\n'
  COMPREPLY=($(compgen -W "$(meshctl __complete -- "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)" -- "${COMP_WORDS[COMP_CWORD]}"))
}
complete -o default -F _meshctl meshctl
)sh";

constexpr std::string_view kZsh = R"sh(#compdef meshctl
_meshctl() {
  local -a candidates
  candidates=("${(@f)$(meshctl __complete -- "${(@)words[2,CURRENT]}" 2>/dev/null)}")
  compadd -a candidates
}
compdef _meshctl meshctl
)sh";

constexpr std::string_view kFish =
    R"sh(complete -c meshctl -f -a '(meshctl __complete -- (commandline -opc)[2..-1] (commandline -ct) 2>/dev/null)'
)sh";

// kubectl asks a program of the name kubectl_complete-mesh; ":4" says that file names are no candidates.
constexpr std::string_view kKubectl = R"sh(#!/bin/sh
kubectl-mesh __complete -- "$@" 2>/dev/null
echo :4
)sh";

std::vector<std::string> values_of(const Context& context, std::string_view command, std::string_view after) {
  if (after == "-o" || after == "--output") return {"table", "json", "yaml", "wide"};
  if (after == "--node") {
    std::vector<std::string> names;
    if (auto targets = find_targets(context)) {
      for (auto& target : targets->list) names.push_back(target.name);
    }
    return names;
  }
  if (after == "--profile") {
    std::vector<std::string> names;
    for (const auto& profile : profiles()) names.emplace_back(profile.name);
    return names;
  }
  if (after == "--explain") {
    std::vector<std::string> ids{"all"};
    for (const auto& check : checks()) ids.emplace_back(check.id);
    return ids;
  }
  if (command == "get") return row_kinds();
  if (command == "completion") return {"bash", "zsh", "fish", "kubectl"};
  if (command == "enroll" || command == "unenroll")
    return {"namespace", "deployment/", "statefulset/", "daemonset/", "pod/"};
  if (command != "set") return {};
  std::vector<std::string> names;
  if (after == "set") {
    names.push_back("all");
    for (int c = 0; c < static_cast<int>(log::Component::count); ++c)
      names.emplace_back(log::name(static_cast<log::Component>(c)));
  } else if (after == "all" || log::parse_component(after)) {
    for (auto level :
         {log::Level::debug, log::Level::info, log::Level::warn, log::Level::error, log::Level::off})
      names.emplace_back(log::name(level));
  }
  return names;
}

const CLI::App* find_subcommand(const CLI::App& app, const std::string& name) {
  for (const auto* sub : app.get_subcommands([](const CLI::App*) { return true; })) {
    if (sub->get_name() == name) return sub;
  }
  return nullptr;
}

}  // namespace

int completion(Context& context, const std::string& shell) {
  context.out << (shell == "bash" ? kBash : shell == "zsh" ? kZsh : shell == "kubectl" ? kKubectl : kFish);
  return kOk;
}

int complete(Context& context, const CLI::App& root, const std::vector<std::string>& words) {
  const CLI::App* app = &root;
  std::string last = words.empty() ? "" : words.back(), after;
  for (size_t i = 0; i + 1 < words.size(); ++i) {
    after = words[i];
    if (const auto* sub = find_subcommand(*app, words[i])) app = sub;
  }
  std::vector<std::string> candidates = values_of(context, app->get_name(), after);
  static constexpr std::string_view kWithValues[] = {"-o", "--output", "--node", "--profile", "--explain"};
  bool for_option = std::ranges::find(kWithValues, after) != std::end(kWithValues);
  if (!for_option) {
    for (const auto* sub : app->get_subcommands([](const CLI::App*) { return true; })) {
      if (!sub->get_group().empty()) candidates.push_back(sub->get_name());
    }
    for (const auto* level = app; last.starts_with('-') && level; level = level->get_parent()) {
      for (const auto* option : level->get_options()) {
        for (const auto& name : option->get_lnames()) candidates.push_back("--" + name);
      }
    }
  }
  for (const auto& candidate : candidates) {
    if (candidate.starts_with(last)) context.out << printable(candidate) << "\n";
  }
  return kOk;
}

}  // namespace nodemesh::ctl

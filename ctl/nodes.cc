#include "ctl/nodes.h"

#include <algorithm>
#include <filesystem>
#include <system_error>

#include <nlohmann/json.hpp>

#include "ctl/client.h"
#include "ctl/views.h"

namespace nodemesh::ctl {
namespace {

Target in_run_dir(const Context& context, const std::string& node) {
  return {node, "unix:" + context.run_dir + "/" + node + "/admin.sock"};
}

int nobody_found(const Context& context) {
  return context.failed(
      kUnreachable, "no node runs here: no <node>/admin.sock in " + context.run_dir,
      "start one with `meshctl node run --config DIR --node NAME`, or name its run directory with --run-dir");
}

Result<nlohmann::json> ask_one(const Target& target, std::string_view method, std::string_view path) {
  auto response = http(target.address, method, path);
  if (!response) return std::unexpected(response.error());
  if (response->status == 404) return fail("node " + target.name + " does not serve " + std::string(path));
  if (response->status != 200)
    return fail("node " + target.name + " answered " + std::to_string(response->status) + ": " +
                response->body.substr(0, response->body.find('\n')));
  auto body = nlohmann::json::parse(response->body, nullptr, false);
  if (!body.is_object())
    return fail("node " + target.name + " answered with something that is not a JSON object");
  return body;
}

}  // namespace

std::vector<Target> find_targets(const Context& context) {
  std::vector<Target> targets;
  if (!context.admin.empty()) return {{context.admin, context.admin}};
  for (const auto& node : context.nodes) targets.push_back(in_run_dir(context, node));
  if (!targets.empty()) return targets;
  std::error_code error;
  for (std::filesystem::directory_iterator entry(context.run_dir, error), end; !error && entry != end;
       entry.increment(error)) {
    std::error_code ignored;
    if (std::filesystem::is_socket(entry->path() / "admin.sock", ignored)) {
      targets.push_back(in_run_dir(context, entry->path().filename()));
    }
  }
  std::ranges::sort(targets, {}, &Target::name);
  return targets;
}

Answers ask(Context& context, std::string_view method, std::string_view path) {
  Answers answers;
  auto targets = find_targets(context);
  if (targets.empty()) {
    answers.exit = nobody_found(context);
    return answers;
  }
  std::vector<Error> errors;
  bool refused = false;
  for (const auto& target : targets) {
    auto body = ask_one(target, method, path);
    if (!body) {
      errors.push_back(body.error());
      refused = refused || body.error().reason != Reason::CONNECT_FAILED;
      continue;
    }
    auto node = text_at(*body, "/node");
    answers.list.push_back({node.empty() ? target.name : node, std::move(*body)});
  }
  bool fatal = answers.list.empty() || !context.nodes.empty();
  for (const auto& error : errors) {
    if (!fatal) {
      context.warn(error.message);
      continue;
    }
    auto next = refused
                    ? "run `meshctl version` to compare the versions, and --help for what the command takes"
                    : "look whether the agent runs, or use sudo: its socket is its user's and root's only";
    answers.exit = context.failed(refused ? kFailure : kUnreachable, error.message, next);
  }
  return answers;
}

}  // namespace nodemesh::ctl

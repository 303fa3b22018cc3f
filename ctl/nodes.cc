#include "ctl/nodes.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <system_error>
#include <thread>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "ctl/json_at.h"
#include "ctl/views.h"

namespace nodemesh::ctl {
namespace {

constexpr size_t kAtOnce = 16;
constexpr seconds kAllWithin{60};

Target in_run_dir(const Context& context, const std::string& node) {
  return {.name = node, .address = "unix:" + context.run_dir + "/" + node + "/admin.sock"};
}

std::vector<Target> local_nodes(const Context& context) {
  std::vector<Target> targets;
  std::error_code error;
  for (std::filesystem::directory_iterator entry(context.run_dir, error), end; !error && entry != end;
       entry.increment(error)) {
    std::error_code ignored;
    if (std::filesystem::is_socket(entry->path() / "admin.sock", ignored))
      targets.push_back(in_run_dir(context, entry->path().filename()));
  }
  std::ranges::sort(targets, {}, &Target::name);
  return targets;
}

bool is_set(const char* variable) {
  const char* value = std::getenv(variable);
  return value != nullptr && *value != '\0';
}

bool there_is_a_cluster() {
  const char* home = std::getenv("HOME");
  std::error_code ignored;
  return is_set("KUBERNETES_SERVICE_HOST") ||
         (home != nullptr && std::filesystem::exists(std::string(home) + "/.kube/config", ignored));
}

Result<Targets> cluster_targets(const Context& context) {
  auto access = cluster_access(context);
  if (!access) return std::unexpected(access.error());
  auto pods = component_pods(*open_cluster(*access), context.ns, "agent");
  if (!pods) return std::unexpected(pods.error());
  Targets targets{agents_of(*pods), *access};
  if (targets.list.empty())
    return fail(Reason::CONNECT_FAILED,
                fmt::format("no agent of nodemesh runs in namespace {} of {}", context.ns, access->url()));
  keep_named(targets.list, context.nodes);
  return targets;
}

// Why a Pod that is there cannot be asked; empty where it runs.
std::string why_not(const nlohmann::json& pod) {
  auto phase = text_at(pod, "/status/phase");
  if (phase == "Running") return {};
  std::string why = fmt::format("the agent's Pod {} is {}", text_at(pod, "/metadata/name"),
                                phase.empty() ? "of unknown state" : phase);
  for (int i = 0; i < 2; ++i) {
    auto waits = text_at(pod, fmt::format("/status/containerStatuses/{}/state/waiting/reason", i));
    if (!waits.empty()) return why + " (" + waits + ")";
  }
  return why;
}

}  // namespace

Result<std::vector<nlohmann::json>> component_pods(ClusterApi& api, const std::string& ns,
                                                   std::string_view component) {
  auto selector = fmt::format("app.kubernetes.io/name=nodemesh,app.kubernetes.io/component={}", component);
  return api.list(fmt::format("/api/v1/namespaces/{}/pods?labelSelector={}", kube::percent_encode(ns),
                              kube::percent_encode(selector)));
}

std::vector<Target> agents_of(const std::vector<nlohmann::json>& pods) {
  std::map<std::string, const nlohmann::json*> by_node;
  auto rank = [](const nlohmann::json& pod) {  // RFC 3339 in UTC sorts as text
    return std::pair(text_at(pod, "/metadata/deletionTimestamp").empty(),
                     text_at(pod, "/metadata/creationTimestamp"));
  };
  for (const auto& pod : pods) {
    auto node = text_at(pod, "/spec/nodeName");
    if (node.empty()) continue;
    auto*& best = by_node[node];
    if (best == nullptr || rank(*best) < rank(pod)) best = &pod;
  }
  std::vector<Target> targets;
  for (const auto& [node, pod] : by_node)
    targets.push_back({.name = node, .pod = text_at(*pod, "/metadata/name"), .problem = why_not(*pod)});
  return targets;
}

void keep_named(std::vector<Target>& targets, const std::vector<std::string>& names) {
  if (names.empty()) return;
  std::erase_if(targets, [&](const Target& target) { return std::ranges::count(names, target.name) == 0; });
  for (const auto& name : names) {
    if (std::ranges::count(targets, name, &Target::name) == 0)
      targets.push_back({.name = name, .problem = "there is no agent on a node of that name"});
  }
  std::ranges::sort(targets, {}, &Target::name);
}

bool asks_a_cluster(const Context& context) {
  if (!context.kubeconfig.empty() || !context.kube_context.empty()) return true;
  if (context.run_dir_given) return false;
  return is_set("KUBECONFIG") || (local_nodes(context).empty() && there_is_a_cluster());
}

Result<Targets> find_targets(const Context& context) {
  if (!context.admin.empty()) return Targets{{{.name = context.admin, .address = context.admin}}, {}};
  if (asks_a_cluster(context)) return cluster_targets(context);
  Targets targets;
  for (const auto& node : context.nodes) targets.list.push_back(in_run_dir(context, node));
  if (targets.list.empty()) targets.list = local_nodes(context);
  if (targets.list.empty())
    return fail(Reason::CONNECT_FAILED, "no node runs here: no <node>/admin.sock in " + context.run_dir);
  return targets;
}

AskPod through_api_server(const kube::Access& access) {
  return [access](const PodPort& to, std::string_view method, std::string_view path, milliseconds deadline) {
    return http_through_api_server(access, to, method, path, deadline);
  };
}

void for_each_at_once(size_t count, const std::function<void(size_t)>& ask) {
  std::atomic<size_t> next{0};
  auto work = [&] {
    for (size_t i = next++; i < count; i = next++) ask(i);
  };
  std::vector<std::jthread> threads;
  for (size_t i = 1; i < std::min(count, kAtOnce); ++i) threads.emplace_back(work);
  work();
}

std::vector<Result<HttpResponse>> ask_targets(const Context& context, const Targets& targets,
                                              std::string_view method, std::string_view path,
                                              milliseconds deadline) {
  auto until = Monotonic::now() + kAllWithin;
  AskPod ask_pod = targets.cluster ? through_api_server(*targets.cluster) : AskPod();
  std::vector<Result<HttpResponse>> answers(targets.list.size(), HttpResponse{});
  for_each_at_once(targets.list.size(), [&](size_t i) {
    const Target& target = targets.list[i];
    auto left = std::min(deadline, std::chrono::duration_cast<milliseconds>(until - Monotonic::now()));
    std::string problem = left.count() <= 0 ? "not asked: the others took a minute" : target.problem;
    if (!problem.empty()) {
      answers[i] = fail(Reason::CONNECT_FAILED, "node " + target.name + ": " + problem);
      return;
    }
    answers[i] = ask_pod ? ask_pod({context.ns, target.pod, kAdminPort}, method, path, left)
                         : http(target.address, method, path, left);
    if (!answers[i] && ask_pod) answers[i].error().message.insert(0, "node " + target.name + ": ");
  });
  return answers;
}

Result<nlohmann::json> read_answer(const Target& target, const Result<HttpResponse>& response,
                                   std::string_view path) {
  if (!response) return std::unexpected(response.error());
  if (response->status == 404) return fail("node " + target.name + " does not serve " + std::string(path));
  if (response->status != 200)
    return fail("node " + target.name + " answered " + std::to_string(response->status) + ": " +
                response->body.substr(0, response->body.find('\n')));
  auto body = parse_json(response->body);
  if (!body.is_object())
    return fail("node " + target.name + " answered with something that is not a JSON object");
  return body;
}

int nobody_found(const Context& context, const Error& error) {
  if (error.reason != Reason::CONNECT_FAILED) return cluster_failed(context, error);
  return context.failed(kUnreachable, error.message,
                        asks_a_cluster(context)
                            ? "name the namespace of nodemesh by -n, the cluster by --kubeconfig and "
                              "--context, or install it: `meshctl install`"
                            : "start one with `meshctl node run --config DIR --node NAME`, or name its run "
                              "directory with --run-dir, or a cluster with --kubeconfig");
}

Answers ask(Context& context, std::string_view method, std::string_view path) {
  Answers answers;
  auto targets = find_targets(context);
  if (!targets) {
    answers.exit = nobody_found(context, targets.error());
    return answers;
  }
  auto responses = ask_targets(context, *targets, method, path);
  std::vector<Error> errors;
  bool refused = false;
  for (size_t i = 0; i < responses.size(); ++i) {
    const auto& target = targets->list[i];
    auto body = read_answer(target, responses[i], path);
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
                : targets->cluster
                    ? "look at the agent's Pod: `kubectl get pods -n " + context.ns + " -o wide`"
                    : "look whether the agent runs, or use sudo: its socket is its user's and root's only";
    answers.exit = context.failed(refused ? kFailure : kUnreachable, error.message, next);
  }
  return answers;
}

}  // namespace nodemesh::ctl

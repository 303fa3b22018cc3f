#include "ctl/rollout.h"

#include <poll.h>

#include <map>

#include <fmt/format.h>

#include "ctl/check_words.h"
#include "ctl/json_at.h"

namespace nodemesh::ctl {
namespace {

constexpr int kBetweenLooks = 1000;  // ms

std::string pods_path(const std::string& ns) {
  return fmt::format("/api/v1/namespaces/{}/pods?labelSelector=app.kubernetes.io%2Fname%3Dnodemesh", ns);
}

// The first pod that is not ready, and why.
std::string first_trouble(const std::vector<nlohmann::json>& pods) {
  for (const auto& pod : pods) {
    if (is_finished_pod(pod) || is_ready_pod(pod)) continue;
    auto node = text_of(pod, "spec", "nodeName");
    return fmt::format("; pod {}{}{}: {}", text_of(pod, "metadata", "name"), node.empty() ? "" : " on ", node,
                       why_not_ready(pod));
  }
  return "";
}

bool observed(const nlohmann::json& object) {
  return number_of(object, "status", "observedGeneration") >= number_of(object, "metadata", "generation");
}

void note_end(const nlohmann::json& pod, std::map<std::string, std::string>& ends) {
  if (text_of(pod, "metadata", "labels", "app.kubernetes.io/component") != "agent") return;
  auto node = text_of(pod, "spec", "nodeName");
  if (node.empty()) return;
  auto& doubt = ends[node];
  for (const auto& container : items_of(pod, "status", "containerStatuses")) {
    const auto& ended = json_at(container, "state", "terminated");
    if (text_of(container, "name") == "warden" && ended.is_object() && number_of(ended, "exitCode") != 0)
      doubt = fmt::format("its warden ended with code {}", number_of(ended, "exitCode"));
  }
}

// All nodes, not only those whose agent's Pod was still there: a Pod of a dead node is gone once it was
// deleted by force.
Result<> doubt_silent_nodes(ClusterApi& api, std::map<std::string, std::string>& ends) {
  auto nodes = api.list("/api/v1/nodes");
  if (!nodes) return std::unexpected(nodes.error());
  for (const auto& node : *nodes) {
    if (condition_of(node, "Ready") != "True")
      ends[text_of(node, "metadata", "name")] = "the node is not ready, so nobody saw its agent end";
  }
  return {};
}

// What to do about a Pod that does not go, where its node cannot say that it has ended; else "".
std::string way_out(ClusterApi& api, const std::string& ns, const nlohmann::json& pod) {
  auto node = text_of(pod, "spec", "nodeName");
  auto reply = api.get("/api/v1/nodes/" + node);
  if (!reply.ok() || condition_of(reply.body, "Ready") == "True") return "";
  return fmt::format(
      "; Node {} is not ready: bring it back, or `kubectl delete pod {} -n {} --force` and uninstall again",
      node, text_of(pod, "metadata", "name"), ns);
}

}  // namespace

std::string why_not_running(const nlohmann::json& daemonset, const nlohmann::json& deployment,
                            const std::vector<nlohmann::json>& pods) {
  auto wanted = number_of(daemonset, "status", "desiredNumberScheduled");
  auto updated = number_of(daemonset, "status", "updatedNumberScheduled"),
       ready = number_of(daemonset, "status", "numberReady");
  if (!observed(daemonset)) return "the DaemonSet is not looked at yet";
  if (wanted == 0) return "the DaemonSet has found no node yet";
  if (updated < wanted || ready < wanted)
    return fmt::format("{} of {} agents are ready, {} of them new{}", ready, wanted, updated,
                       first_trouble(pods));
  if (!deployment.is_object()) return "";
  auto replicas = number_of(deployment, "spec", "replicas");
  auto there = number_of(deployment, "status", "readyReplicas");
  if (!observed(deployment) || there < replicas ||
      number_of(deployment, "status", "updatedReplicas") < replicas)
    return fmt::format("{} of {} controllers are ready{}", there, replicas, first_trouble(pods));
  return "";
}

Result<> wait_running(Context& context, ClusterApi& api, seconds at_most) {
  auto until = Monotonic::now() + at_most;
  auto base = fmt::format("/apis/apps/v1/namespaces/{}", context.ns);
  while (true) {
    auto daemonset = api.get(base + "/daemonsets/nodemesh-agent");
    if (!daemonset.ok()) return fail(daemonset.error);
    auto deployment = api.get(base + "/deployments/nodemesh-controller");
    if (!deployment.ok() && !deployment.not_found()) return fail(deployment.error);
    auto pods = api.list(pods_path(context.ns));
    if (!pods) return std::unexpected(pods.error());
    auto reason = why_not_running(daemonset.body, deployment.body, *pods);
    if (reason.empty()) return {};
    context.progress("waiting: " + reason);
    if (Monotonic::now() > until)
      return fail(fmt::format("nodemesh does not run after {} s: {}", at_most.count(), reason));
    ::poll(nullptr, 0, kBetweenLooks);
  }
}

Result<> wait_not_terminating(Context& context, ClusterApi& api, seconds at_most) {
  auto until = Monotonic::now() + at_most;
  while (true) {
    auto reply = api.get("/api/v1/namespaces/" + context.ns);
    if (!reply.ok() && !reply.not_found()) return fail(reply.error);
    if (text_of(reply.body, "metadata", "deletionTimestamp").empty()) return {};
    context.progress(fmt::format("waiting: namespace {} was deleted and is not gone yet", context.ns));
    if (Monotonic::now() > until)
      return fail(
          fmt::format("namespace {} was deleted and is not gone after {} s", context.ns, at_most.count()));
    ::poll(nullptr, 0, kBetweenLooks / 2);
  }
}

Result<std::vector<NodeEnd>> wait_gone(Context& context, ClusterApi& api, seconds at_most) {
  auto until = Monotonic::now() + at_most;
  std::map<std::string, std::string> ends;
  while (true) {
    auto pods = api.list(pods_path(context.ns));
    if (!pods) return std::unexpected(pods.error());
    for (const auto& pod : *pods) note_end(pod, ends);
    if (pods->empty()) break;
    auto reason =
        fmt::format("{} pods let their node's pods go and end; the first is {} on {}", pods->size(),
                    text_of(pods->front(), "metadata", "name"), text_of(pods->front(), "spec", "nodeName"));
    context.progress("waiting: " + reason);
    if (Monotonic::now() > until)
      return fail(fmt::format("not gone after {} s: {}{}", at_most.count(), reason,
                              way_out(api, context.ns, pods->front())));
    ::poll(nullptr, 0, kBetweenLooks / 2);
  }
  if (auto seen = doubt_silent_nodes(api, ends); !seen) return std::unexpected(seen.error());
  std::vector<NodeEnd> result;
  for (auto& [node, doubt] : ends) result.push_back({node, doubt});
  return result;
}

}  // namespace nodemesh::ctl

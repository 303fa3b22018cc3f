// nodemesh itself: agents, controller, roll-outs, versions.
#include <algorithm>
#include <set>

#include <fmt/format.h>

#include "ctl/check.h"
#include "ctl/check_own.h"
#include "ctl/check_words.h"
#include "ctl/json_at.h"

namespace nodemesh::ctl {
namespace {

constexpr double kProxyFloor = 128.0 * (1 << 20);
constexpr int64_t kManyRestarts = 3;

void no_agents(const Cluster& cluster, Found& found) {
  if (agent_set(cluster) == nullptr)
    found(fmt::format("DaemonSet {}/nodemesh-agent", cluster.facts.ns),
          "it is absent: nodemesh is not installed in this namespace",
          "`meshctl install`, or name the namespace: `meshctl check -n NAMESPACE`");
}

bool wanted_on(const Json& daemon, const Json& node) {
  const auto& selector = json_at(daemon, "spec", "template", "spec", "nodeSelector");
  return !selector.is_object() || selected_by({{"matchLabels", selector}}, labels_of(node));
}

void node_without_agent(const Cluster& cluster, Found& found) {
  const auto* daemon = agent_set(cluster);
  if (daemon == nullptr) return;
  auto agents = agents_by_node(cluster);
  for (const auto& node : cluster.facts.all("nodes")) {
    auto name = text_of(node, "metadata", "name");
    if (!wanted_on(*daemon, node) || agents.contains(name)) continue;
    found(name_of(node),
          "it has no agent although the DaemonSet wants one there: its enrolled pods are plain, or cut off",
          fmt::format("kubectl describe daemonset nodemesh-agent -n {}", cluster.facts.ns));
  }
}

void agent_not_ready(const Cluster& cluster, Found& found) {
  for (const auto* pod : cluster.agents()) {
    if (is_ready_pod(*pod)) continue;
    found(name_of(*pod),
          fmt::format("the agent of node {} is not ready: {}", node_of(*pod), why_not_ready(*pod)),
          fmt::format("kubectl logs -n {} {} --all-containers --tail 20", cluster.facts.ns,
                      text_of(*pod, "metadata", "name")));
  }
}

void rollout_unfinished(const Cluster& cluster, Found& found) {
  const auto* daemon = agent_set(cluster);
  if (daemon == nullptr) return;
  auto wanted = number_of(*daemon, "status", "desiredNumberScheduled"),
       done = number_of(*daemon, "status", "updatedNumberScheduled");
  if (done < wanted)
    found(name_of(*daemon),
          fmt::format("{} of {} agents are of the present version; the others are replaced one by one", done,
                      wanted),
          fmt::format("kubectl rollout status daemonset/nodemesh-agent -n {}", cluster.facts.ns));
}

template <class Judge>
void for_own_containers(const Cluster& cluster, Judge&& judge) {
  for (const auto& pods : {cluster.agents(), controllers(cluster)}) {
    for (const auto* pod : pods) {
      for (const auto& container : items_of(*pod, "status", "containerStatuses")) judge(*pod, container);
    }
  }
}

void killed_for_memory(const Cluster& cluster, Found& found) {
  for_own_containers(cluster, [&](const Json& pod, const Json& container) {
    for (const char* state : {"state", "lastState"}) {
      if (text_of(container, state, "terminated", "reason") != "OOMKilled") continue;
      found(name_of(pod),
            fmt::format("container {} was killed for memory, and its connections with it",
                        text_of(container, "name")),
            "raise agent.proxy.resources (or the container's own) in the values, then `meshctl upgrade`");
      return;
    }
  });
}

void restarts(const Cluster& cluster, Found& found) {
  for_own_containers(cluster, [&](const Json& pod, const Json& container) {
    auto count = number_of(container, "restartCount");
    if (count < kManyRestarts) return;
    found(name_of(pod), fmt::format("container {} was restarted {} times", text_of(container, "name"), count),
          fmt::format("kubectl logs -n {} {} -c {} --previous --tail 20", cluster.facts.ns,
                      text_of(pod, "metadata", "name"), text_of(container, "name")));
  });
}

void little_memory(const Cluster& cluster, Found& found) {
  const auto* daemon = agent_set(cluster);
  if (daemon == nullptr) return;
  for (const auto& container : items_of(*daemon, "spec", "template", "spec", "containers")) {
    auto limit = bytes_in(text_of(container, "resources", "limits", "memory"));
    if (text_of(container, "name") != "proxy" || !limit || *limit >= kProxyFloor) continue;
    found(name_of(*daemon),
          fmt::format("the proxy's memory limit {} is below 128Mi: with many connections it is killed, and "
                      "all of them with it",
                      text_of(container, "resources", "limits", "memory")),
          "raise agent.proxy.resources.limits.memory, then `meshctl upgrade`");
  }
}

void surge(const Cluster& cluster, Found& found) {
  const auto* daemon = agent_set(cluster);
  if (daemon == nullptr) return;
  const auto& surge = json_at(*daemon, "spec", "updateStrategy", "rollingUpdate", "maxSurge");
  // apps/v1: 0 where it is absent.
  bool beside =
      (surge.is_number_integer() && surge != 0) || (surge.is_string() && surge != "0" && surge != "0%");
  if (!beside)
    found(name_of(*daemon),
          "maxSurge is 0: where an agent is replaced, what its node's pods have open is reset, and new "
          "connections fail for about 10 s",
          "set agent.rollingUpdate.maxSurge=1 and maxUnavailable=0, then `meshctl upgrade`");
}

void fail_open(const Cluster& cluster, Found& found) {
  const auto* daemon = agent_set(cluster);
  if (daemon != nullptr && has_flag(*daemon, "--fail-open"))
    found(name_of(*daemon),
          "agent.warden.failOpen is on: while a proxy is down, its node's pods talk around the mesh",
          "set agent.warden.failOpen=false, then `meshctl upgrade`");
}

void hybrid(const Cluster& cluster, Found& found) {
  const auto* daemon = agent_set(cluster);
  if (daemon != nullptr && has_flag(*daemon, "--allow-hybrid"))
    found(name_of(*daemon), "cgroup v1 hierarchies are accepted beside cgroup2, which is meant for tests",
          "set agent.warden.allowHybridCgroups=false, then `meshctl upgrade`");
}

void no_controller(const Cluster& cluster, Found& found) {
  if (signs_itself(cluster) && agent_set(cluster) != nullptr && controller(cluster) == nullptr)
    found(fmt::format("Deployment {}/nodemesh-controller", cluster.facts.ns),
          "it is absent, and agents ask it for certificates",
          "`meshctl upgrade`, or name another authority by ca.address");
}

void controller_not_ready(const Cluster& cluster, Found& found) {
  const auto* deployment = controller(cluster);
  if (deployment == nullptr || number_of(*deployment, "status", "readyReplicas") > 0) return;
  auto pods = controllers(cluster);
  found(name_of(*deployment),
        fmt::format("no replica is ready, so {}: {}",
                    signs_itself(cluster) ? "no new certificate is signed" : kNobodyLeads,
                    pods.empty() ? "it has no pod" : why_not_ready(*pods.front())),
        fmt::format("kubectl logs -n {} deployment/nodemesh-controller --tail 20", cluster.facts.ns));
}

void one_controller(const Cluster& cluster, Found& found) {
  const auto* deployment = controller(cluster);
  if (deployment != nullptr && signs_itself(cluster) && number_of(*deployment, "spec", "replicas") == 1)
    found(name_of(*deployment), "it has one replica: while that moves, new pods get no certificate",
          fmt::format(
              "kubectl scale deployment/nodemesh-controller -n {} --replicas 2, and set controller.replicas",
              cluster.facts.ns));
}

std::set<std::string> images(const std::vector<const Json*>& pods) {
  std::set<std::string> out;
  for (const auto* pod : pods) {
    for (const auto& container : items_of(*pod, "spec", "containers")) {
      auto name = text_of(container, "name");
      if (name == "warden" || name == "proxy" || name == "controller")
        out.insert(text_of(container, "image"));
    }
  }
  return out;
}

void images_differ(const Cluster& cluster, Found& found) {
  auto all = images(cluster.agents());
  all.merge(images(controllers(cluster)));
  if (all.size() > 1)
    found("namespace " + cluster.facts.ns,
          fmt::format("agents and controller run different images: {}", fmt::join(all, ", ")),
          fmt::format("let the roll-out end: `kubectl rollout status daemonset/nodemesh-agent -n {}`",
                      cluster.facts.ns));
}

void meshctl_differs(const Cluster& cluster, Found& found) {
  const auto* daemon = agent_set(cluster);
  if (daemon == nullptr) return;
  auto version = text_of(*daemon, "metadata", "labels", "app.kubernetes.io/version");
  if (!version.empty() && version != cluster.facts.meshctl_version)
    found(name_of(*daemon),
          fmt::format("version {} is installed and this meshctl is {}: it may judge by other rules", version,
                      cluster.facts.meshctl_version),
          "use the meshctl of that version, or `meshctl upgrade`");
}

void enrolled_without_agent(const Cluster& cluster, Found& found) {
  auto agents = agents_by_node(cluster);
  std::map<std::string, size_t> count;
  for (const auto& pod : cluster.facts.all("pods")) {
    auto node = text_of(pod, "spec", "nodeName");
    if (cluster.enrolled(pod) && !node.empty() && !agents.contains(node)) ++count[node];
  }
  for (const auto& [node, pods] : count)
    found("Node " + node,
          fmt::format("{} pods with the mesh's label run there, and no agent: they talk plainly", pods),
          fmt::format("let the DaemonSet run there (agent.nodeSelector): `kubectl get node {} --show-labels`",
                      node));
}

using enum Severity;
constexpr auto kInstalled = When::installed;
const Check kChecks[] = {
    {"NM1201",
     error,
     kInstalled,
     "nodemesh is not installed here",
     "There is no agents' DaemonSet in the namespace.",
     {"daemonsets"},
     no_agents},
    {"NM1202",
     error,
     kInstalled,
     "A node has no agent",
     "Something keeps the DaemonSet's pod off: taints that are not tolerated, a quota, a webhook.",
     {"daemonsets", "nodes", "pods"},
     node_without_agent},
    {"NM1203",
     error,
     kInstalled,
     "An agent is not ready",
     "New connections of that node's pods may be refused. Its log names what is missing: kernel, cgroups, "
     "BPF, certificates, the API server.",
     {"pods"},
     agent_not_ready},
    {"NM1204",
     info,
     kInstalled,
     "A roll-out of agents is under way",
     "Agents are replaced one by one. Look again when it has ended.",
     {"daemonsets"},
     rollout_unfinished},
    {"NM1205",
     error,
     kInstalled,
     "A container was killed for memory",
     "Every connection costs about 5 KiB. Raise the limit, or remove it.",
     {"pods"},
     killed_for_memory},
    {"NM1206",
     warning,
     kInstalled,
     "A container restarts again and again",
     "Its previous log says why.",
     {"pods"},
     restarts},
    {"NM1207",
     warning,
     kInstalled,
     "The proxy's memory limit is low",
     "Below 128 MiB a busy node's proxy is killed.",
     {"daemonsets"},
     little_memory},
    {"NM1208",
     warning,
     kInstalled,
     "maxSurge is 0",
     "An upgrade resets connections; with 1 the next agent stands by and takes over.",
     {"daemonsets"},
     surge},
    {"NM1209",
     warning,
     kInstalled,
     "Agents fail open",
     "While a proxy is down, its pods talk plainly. Chosen by agent.warden.failOpen.",
     {"daemonsets"},
     fail_open},
    {"NM1210",
     info,
     kInstalled,
     "cgroup v1 hierarchies are accepted",
     "The order in which a pod is enrolled is proven for cgroup2.",
     {"daemonsets"},
     hybrid},
    {"NM1211",
     error,
     kInstalled,
     "The controller is absent",
     "Agents ask it for certificates.",
     {"daemonsets", "deployments"},
     no_controller},
    {"NM1212",
     error,
     kInstalled,
     "No controller is ready",
     "Certificates serve to their end; new pods get none.",
     {"daemonsets", "deployments", "pods"},
     controller_not_ready},
    {"NM1213",
     info,
     kInstalled,
     "The controller has one replica",
     "With two, a node can be drained without a gap.",
     {"daemonsets", "deployments"},
     one_controller},
    {"NM1224",
     warning,
     kInstalled,
     "Images differ",
     "Neighbouring versions understand each other; a mixture should not last.",
     {"pods"},
     images_differ},
    {"NM1225",
     info,
     kInstalled,
     "meshctl has another version",
     "Its checks are those of its own version.",
     {"daemonsets"},
     meshctl_differs},
    {"NM1226",
     error,
     kInstalled,
     "A labelled pod's node has no agent",
     "The pods talk as if they had no label.",
     {"pods", "namespaces"},
     enrolled_without_agent},
};

}  // namespace

std::span<const Check> install_checks() {
  return kChecks;
}

}  // namespace nodemesh::ctl

#include "ctl/check_own.h"

#include "ctl/check_words.h"
#include "ctl/json_at.h"

namespace nodemesh::ctl {

const Json* agent_set(const Cluster& cluster) {
  return cluster.object("daemonsets", cluster.facts.ns, "nodemesh-agent");
}
const Json* controller(const Cluster& cluster) {
  return cluster.object("deployments", cluster.facts.ns, "nodemesh-controller");
}
std::vector<const Json*> controllers(const Cluster& cluster) {
  return cluster.select(cluster.facts.ns, {{"app.kubernetes.io/name", "nodemesh"},
                                           {"app.kubernetes.io/component", "controller"}});
}

std::string authority_of(const Cluster& cluster) {
  const auto* daemon = agent_set(cluster);
  return daemon == nullptr ? "" : flag_of_agent(*daemon, "--ca-address");
}
bool signs_itself(const Cluster& cluster) {
  return agent_set(cluster) == nullptr || authority_of(cluster).starts_with("nodemesh-controller.");
}
std::string bundle_of(const Cluster& cluster) {
  if (const auto* daemon = agent_set(cluster)) {
    for (const auto& volume : items_of(*daemon, "spec", "template", "spec", "volumes")) {
      if (text_of(volume, "name") == "ca-root") return text_of(volume, "configMap", "name");
    }
  }
  return "nodemesh-root-cert";
}

// While it waits to be scheduled, a DaemonSet's pod names its node by affinity alone.
std::string node_of(const Json& pod) {
  auto node = text_of(pod, "spec", "nodeName");
  if (!node.empty()) return node;
  const auto& terms = items_of(pod, "spec", "affinity", "nodeAffinity",
                               "requiredDuringSchedulingIgnoredDuringExecution", "nodeSelectorTerms");
  for (const auto& term : terms) {
    for (const auto& field : items_of(term, "matchFields")) {
      const auto& values = items_of(field, "values");
      if (text_of(field, "key") == "metadata.name" && values.size() == 1 && values[0].is_string())
        return values[0].get<std::string>();
    }
  }
  return "";
}

std::map<std::string, const Json*> agents_by_node(const Cluster& cluster) {
  std::map<std::string, const Json*> out;
  for (const auto* pod : cluster.agents()) {
    auto& place = out[node_of(*pod)];
    if (place == nullptr || is_ready_pod(*pod)) place = pod;
  }
  return out;
}

}  // namespace nodemesh::ctl

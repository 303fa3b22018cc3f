// What agents say of themselves, and what they say of their pods in WorkloadSlices.
#include <map>
#include <set>

#include <fmt/format.h>

#include "ctl/check.h"
#include "ctl/check_own.h"
#include "ctl/check_words.h"
#include "ctl/json_at.h"

namespace nodemesh::ctl {
namespace {

void agent_says_not_ready(const Cluster& cluster, Found& found) {
  for (const auto& agent : cluster.facts.agents) {
    for (const auto& reason : items_of(agent.status, "reasons")) {
      if (reason.is_string())
        found("Node " + agent.node, "its agent is not ready: " + reason.get<std::string>(),
              fmt::format("meshctl status --node {}", agent.node));
    }
  }
}

void warden_gone(const Cluster& cluster, Found& found) {
  for (const auto& agent : cluster.facts.agents) {
    if (json_at(agent.status, "warden", "connected") == false)
      found("Node " + agent.node, "its proxy has no warden: pods are neither enrolled nor let go",
            fmt::format("kubectl logs -n {} daemonset/nodemesh-agent -c warden --tail 20", cluster.facts.ns));
  }
}

// By the API server's objects these would be fine; the agent that serves from its disk does not hear of them.
void agent_from_disk(const Cluster& cluster, Found& found) {
  for (const auto& agent : cluster.facts.agents) {
    if (text_of(agent.status, "config", "source") == "snapshot")
      found("Node " + agent.node,
            "its agent serves the last configuration from its disk, since it does not reach the API server",
            fmt::format("kubectl logs -n {} daemonset/nodemesh-agent -c proxy --tail 20", cluster.facts.ns));
  }
}

void agent_refuses(const Cluster& cluster, Found& found) {
  std::map<std::string, std::pair<std::string, size_t>> refused;
  for (const auto& agent : cluster.facts.agents) {
    for (const auto& object : items_of(agent.status, "rejected")) {
      auto ns = text_of(object, "namespace");
      auto name = fmt::format("{} {}{}{}", text_of(object, "kind"), ns, ns.empty() ? "" : "/",
                              text_of(object, "name"));
      auto& [text, count] = refused[name];
      text = text_of(object, "field") + ": " + text_of(object, "message");
      ++count;
    }
  }
  for (const auto& [name, what] : refused)
    found(name, fmt::format("{} agents refuse it: {}", what.second, what.first),
          "meshctl status says each with its fix");
}

// What our own authority refuses it logs with the reason; another one does not tell, so the usual causes are
// said here.
std::string to_mend_certificate(const Cluster& cluster, const std::string& node, std::string_view error) {
  auto hint = fmt::format("meshctl get certs --node {}", node);
  if (signs_itself(cluster) || !error.contains("code 16")) return hint;  // UNAUTHENTICATED
  const auto& daemon = *agent_set(cluster);
  return fmt::format(
      "{}; {} must know {}/nodemesh-agent as an account of nodes (istiod: CA_TRUSTED_NODE_ACCOUNTS) and "
      "this cluster as \"{}\" (ca.clusterId)",
      hint, authority_of(cluster), cluster.facts.ns, flag_of_agent(daemon, "--ca-cluster-id"));
}

void certificate_missing(const Cluster& cluster, Found& found) {
  for (const auto& agent : cluster.facts.agents) {
    for (const auto& row : items_of(agent.certs, "items")) {
      auto state = text_of(row, "state");
      if (state != "missing" && state != "expired") continue;
      auto error = text_of(row, "error");
      found("Node " + agent.node,
            fmt::format("the certificate of {} is {}{}{}", text_of(row, "identity"), state,
                        error.empty() ? "" : ": ", error),
            to_mend_certificate(cluster, agent.node, error));
    }
  }
}

void certificate_not_renewed(const Cluster& cluster, Found& found) {
  for (const auto& agent : cluster.facts.agents) {
    for (const auto& row : items_of(agent.certs, "items")) {
      auto begins = time_in(text_of(row, "not_before")), ends = time_in(text_of(row, "not_after"));
      auto left = static_cast<double>(number_of(row, "expires_in_s"));
      if (text_of(row, "state") != "valid" || !begins || !ends || left > (*ends - *begins) / 4) continue;
      found("Node " + agent.node,
            fmt::format("the certificate of {} has {:.0f} s left and was not renewed: {}",
                        text_of(row, "identity"), left, text_of(row, "error")),
            fmt::format("meshctl get certs --node {}", agent.node));
    }
  }
}

// By node: whether its slices say they are complete, and the uids that they say are in the mesh.
struct Slices {
  bool complete = false;
  std::set<std::string> mesh;
};
std::map<std::string, Slices> slices_by_node(const Cluster& cluster) {
  std::map<std::string, Slices> out;
  for (const auto& slice : cluster.facts.all("workloadslices")) {
    auto& of = out[text_of(slice, "spec", "node")];
    of.complete = of.complete || flag_of(slice, "spec", "complete");
    for (const auto& pod : items_of(slice, "spec", "pods")) {
      if (text_of(pod, "state") == "mesh") of.mesh.insert(text_of(pod, "uid"));
    }
  }
  return out;
}

void slice_missing(const Cluster& cluster, Found& found) {
  auto slices = slices_by_node(cluster);
  std::set<std::string> without;
  for (const auto& pod : cluster.facts.all("pods")) {
    auto node = text_of(pod, "spec", "nodeName");
    if (cluster.enrolled(pod) && !node.empty() && !slices.contains(node)) without.insert(node);
  }
  for (const auto& node : without)
    found("Node " + node,
          "it has pods in the mesh and no WorkloadSlice: other nodes do not know them, and connections to "
          "them wait and fail",
          fmt::format("kubectl logs -n {} daemonset/nodemesh-agent -c proxy --tail 20", cluster.facts.ns));
}

void slice_orphaned(const Cluster& cluster, Found& found) {
  for (const auto& slice : cluster.facts.all("workloadslices")) {
    auto node = text_of(slice, "spec", "node");
    if (cluster.object("nodes", "", node) == nullptr)
      found(name_of(slice), fmt::format("its node {} does not exist", node),
            fmt::format("kubectl delete workloadslice {}", text_of(slice, "metadata", "name")));
  }
}

void slice_incomplete(const Cluster& cluster, Found& found) {
  for (const auto& [node, slices] : slices_by_node(cluster)) {
    if (!slices.complete && cluster.object("nodes", "", node) != nullptr)
      found("Node " + node,
            "its slices are not complete: to its pods outside of the mesh connections wait for 5 s and fail",
            fmt::format("kubectl get workloadslice {}-0 -o yaml", node));
  }
}

void pod_not_in_slices(const Cluster& cluster, Found& found) {
  auto slices = slices_by_node(cluster);
  for (const auto& pod : cluster.facts.all("pods")) {
    auto of = slices.find(text_of(pod, "spec", "nodeName"));
    // A pod that is starting has no address to be named by.
    if (of == slices.end() || !cluster.enrolled(pod) || !is_ready_pod(pod)) continue;
    if (!of->second.mesh.contains(text_of(pod, "metadata", "uid")))
      found(name_of(pod),
            "it is to be in the mesh, and its node's slices do not say so: other nodes send it plaintext, or "
            "nothing",
            fmt::format("meshctl get workloads --node {}", of->first));
  }
}

using enum Severity;
constexpr auto kInstalled = When::installed;
const Check kChecks[] = {
    {"NM1227",
     error,
     kInstalled,
     "An agent says that it is not ready",
     "The agent's own reasons.",
     {"agents"},
     agent_says_not_ready},
    {"NM1228",
     error,
     kInstalled,
     "A proxy has no warden",
     "Traffic goes on with the sockets in stock; new pods are not enrolled.",
     {"agents"},
     warden_gone},
    {"NM1229",
     warning,
     kInstalled,
     "An agent serves from its disk",
     "It does not reach the API server; what changed since is not in force on its node.",
     {"agents"},
     agent_from_disk},
    {"NM1230",
     error,
     kInstalled,
     "Agents refuse an object",
     "Its last good version stays in force, or nothing.",
     {"agents"},
     agent_refuses},
    {"NM1231",
     error,
     kInstalled,
     "A pod's certificate is missing or expired",
     "Its connections are refused with NO_IDENTITY.",
     {"daemonsets", "agents"},
     certificate_missing},
    {"NM1232",
     warning,
     kInstalled,
     "A certificate was not renewed in time",
     "It should be at half of its life.",
     {"agents"},
     certificate_not_renewed},
    {"NM1233",
     error,
     kInstalled,
     "A node with pods in the mesh has no slice",
     "Other nodes learn of its pods by WorkloadSlices.",
     {"pods", "namespaces", "workloadslices"},
     slice_missing},
    {"NM1234",
     warning,
     kInstalled,
     "A slice's node does not exist",
     "It is garbage; the garbage collector removes it with the Node that owns it.",
     {"nodes", "workloadslices"},
     slice_orphaned},
    {"NM1235",
     warning,
     kInstalled,
     "A node's slices are not complete",
     "Until they are, its pods outside of the mesh are unknown to others.",
     {"nodes", "workloadslices"},
     slice_incomplete},
    {"NM1236",
     warning,
     kInstalled,
     "A pod is missing in its node's slices",
     "Its node's agent has not enrolled it, or could not write.",
     {"pods", "namespaces", "workloadslices"},
     pod_not_in_slices},
};

}  // namespace

std::span<const Check> agent_checks() {
  return kChecks;
}

}  // namespace nodemesh::ctl

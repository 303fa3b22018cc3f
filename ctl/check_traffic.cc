// Who is in the mesh and who is not, and what NetworkPolicies do to its traffic.
#include <algorithm>
#include <map>
#include <set>

#include <fmt/format.h>

#include "ctl/check.h"
#include "ctl/check_words.h"
#include "ctl/json_at.h"

namespace nodemesh::ctl {
namespace {

constexpr const char* kMode = "istio.io/dataplane-mode";
constexpr uint16_t kHbone = 15008;

std::set<std::string> mesh_namespaces(const Cluster& cluster) {
  std::set<std::string> out;
  for (const auto& ns : cluster.facts.all("namespaces")) {
    if (text_of(ns, "metadata", "labels", kMode) == "ambient") out.insert(text_of(ns, "metadata", "name"));
  }
  return out;
}

// Pods of namespaces in the mesh that are not in it, by why: one finding a namespace.
template <class Is>
void say_left_out(const Cluster& cluster, Is is, std::string_view why, std::string_view hint, Found& found) {
  std::map<std::string, std::vector<std::string>> by_namespace;
  auto in_mesh = mesh_namespaces(cluster);
  for (const auto& pod : cluster.facts.all("pods")) {
    if (in_mesh.contains(ns_of(pod)) && !is_finished_pod(pod) && is(pod))
      by_namespace[ns_of(pod)].push_back(text_of(pod, "metadata", "name"));
  }
  for (auto& [ns, names] : by_namespace) {
    auto count = names.size();
    if (names.size() > 3) names.resize(3);
    found("Namespace " + ns,
          fmt::format("{} of its pods {} ({}{})", count, why, fmt::join(names, ", "), count > 3 ? ", …" : ""),
          fmt::format("{}`kubectl get pods -n {}`", hint, ns));
  }
}

void host_network(const Cluster& cluster, Found& found) {
  say_left_out(
      cluster, [](const Json& pod) { return flag_of(pod, "spec", "hostNetwork"); },
      "are in their node's network and so never in the mesh", "they talk plainly, and STRICT refuses them; ",
      found);
}

void opted_out(const Cluster& cluster, Found& found) {
  say_left_out(
      cluster, [](const Json& pod) { return text_of(pod, "metadata", "labels", kMode) == "none"; },
      "have opted out by their label", "take the label away to enrol them; ", found);
}

bool wanted(const Cluster& cluster, const Json& pod) {
  auto mode = text_of(pod, "metadata", "labels", kMode);
  if (!mode.empty()) return mode == "ambient";
  const auto* ns = cluster.object("namespaces", "", ns_of(pod));
  return ns != nullptr && text_of(*ns, "metadata", "labels", kMode) == "ambient";
}

void sidecar(const Cluster& cluster, Found& found) {
  for (const auto& pod : cluster.facts.all("pods")) {
    bool istio = json_at(pod, "metadata", "annotations", "sidecar.istio.io/status").is_string();
    if (wanted(cluster, pod) && istio && !is_finished_pod(pod))
      found(name_of(pod), "it has an Istio sidecar, so it is not enrolled",
            fmt::format("remove the sidecar: `kubectl label namespace {} istio-injection-`, then restart it",
                        ns_of(pod)));
  }
}

void linkerd_proxy(const Cluster& cluster, Found& found) {
  for (const auto& pod : cluster.facts.all("pods")) {
    bool meshed = !text_of(pod, "metadata", "labels", "linkerd.io/control-plane-ns").empty();
    if (meshed && cluster.enrolled(pod))
      found(name_of(pod),
            "it has Linkerd's proxy and is in this mesh too: each would take the other's traffic",
            fmt::format("kubectl label pod {} -n {} {}=none", text_of(pod, "metadata", "name"), ns_of(pod),
                        kMode));
  }
}

void sandboxed(const Cluster& cluster, Found& found) {
  for (const auto& pod : cluster.facts.all("pods")) {
    auto name = text_of(pod, "spec", "runtimeClassName");
    if (name.empty() || !wanted(cluster, pod) || is_finished_pod(pod)) continue;
    const auto* runtime = cluster.object("runtimeclasses", "", name);
    auto handler = runtime == nullptr ? name : text_of(*runtime, "handler");
    if (handler != "runc" && handler != "crun")
      found(name_of(pod),
            fmt::format(
                "it runs with handler {}, whose sockets the node's kernel does not see: it is not enrolled",
                handler),
            fmt::format("kubectl get runtimeclass {} -o yaml", name));
  }
}

void own_port_taken(const Cluster& cluster, Found& found) {
  for (const auto& pod : cluster.facts.all("pods")) {
    if (!cluster.enrolled(pod)) continue;
    for (const auto& container : items_of(pod, "spec", "containers")) {
      for (const auto& port : items_of(container, "ports")) {
        if (number_of(port, "containerPort") == kHbone)
          found(name_of(pod),
                fmt::format("container {} listens at 15008, which is the mesh's in every pod of it",
                            text_of(container, "name")),
                fmt::format("use another port: `kubectl get pod {} -n {} -o yaml`",
                            text_of(pod, "metadata", "name"), ns_of(pod)));
      }
    }
  }
}

void waits_for_a_sidecar(const Cluster& cluster, Found& found) {
  for (const auto& pod : cluster.facts.all("pods")) {
    if (!cluster.enrolled(pod)) continue;
    for (const auto& container : items_of(pod, "spec", "containers")) {
      auto words = json_at(container, "command").dump() + json_at(container, "args").dump();
      if (words.contains("quitquitquit") || words.contains("localhost:15021") ||
          words.contains("localhost:15020"))
        found(name_of(pod),
              fmt::format("container {} asks a sidecar at localhost (quitquitquit or 1502x); there is none",
                          text_of(container, "name")),
              fmt::format("take that out of its command: `kubectl get pod {} -n {} -o yaml`",
                          text_of(pod, "metadata", "name"), ns_of(pod)));
    }
  }
}

void net_admin(const Cluster& cluster, Found& found) {
  for (const auto& pod : cluster.facts.all("pods")) {
    if (!cluster.enrolled(pod)) continue;
    for (const auto& container : items_of(pod, "spec", "containers")) {
      const auto& added = items_of(container, "securityContext", "capabilities", "add");
      bool may = flag_of(container, "securityContext", "privileged") ||
                 std::ranges::any_of(added, [](const Json& one) {
                   return one == "NET_ADMIN" || one == "CAP_NET_ADMIN" || one == "ALL" || one == "SYS_ADMIN";
                 });
      if (may)
        found(name_of(pod),
              fmt::format("container {} may change its pod's network (NET_ADMIN), and so lead its own "
                          "traffic around the mesh",
                          text_of(container, "name")),
              fmt::format("drop the capability where it is not needed: `kubectl get pod {} -n {} -o yaml`",
                          text_of(pod, "metadata", "name"), ns_of(pod)));
    }
  }
}

// When the label was put on, by the API server's own note.
std::optional<double> labelled_at(const Json& ns) {
  std::optional<double> when;
  for (const auto& entry : items_of(ns, "metadata", "managedFields")) {
    if (json_at(entry, "fieldsV1", "f:metadata", "f:labels", std::string("f:") + kMode).is_object())
      when = time_in(text_of(entry, "time"));
  }
  return when;
}

void older_than_label(const Cluster& cluster, Found& found) {
  for (const auto& ns : cluster.facts.all("namespaces")) {
    auto when = labelled_at(ns);
    if (text_of(ns, "metadata", "labels", kMode) != "ambient" || !when) continue;
    size_t count = 0;
    for (const auto* pod : cluster.select(text_of(ns, "metadata", "name"), Json::object())) {
      auto started = time_in(text_of(*pod, "status", "startTime"));
      count += cluster.enrolled(*pod) && started && *started < *when;
    }
    if (count > 0)
      found(name_of(ns),
            fmt::format(
                "{} of its pods ran before it was labelled: connections that they had then stay as they were",
                count),
            fmt::format("where that matters, `kubectl rollout restart deployment -n {}`",
                        text_of(ns, "metadata", "name")));
  }
}

void plaintext_accepted(const Cluster& cluster, Found& found) {
  for (const auto& ns : mesh_namespaces(cluster)) {
    auto pods = cluster.select(ns, Json::object());
    std::erase_if(pods, [&](const Json* pod) { return !cluster.enrolled(*pod); });
    bool any_strict = std::ranges::any_of(pods, [&](const Json* pod) { return cluster.strict(*pod); });
    if (!pods.empty() && !any_strict)
      found("Namespace " + ns,
            "none of its pods is STRICT: they accept plaintext from anybody outside of the mesh",
            fmt::format("when all its clients are in the mesh, apply a PeerAuthentication with mode STRICT; "
                        "`kubectl get peerauthentications -n {}`",
                        ns));
  }
}

bool allows_port(const Json& rule) {
  const auto& ports = items_of(rule, "ports");
  if (ports.empty()) return true;
  return std::ranges::any_of(ports, [](const Json& port) {
    auto protocol = text_of(port, "protocol");
    if (!protocol.empty() && protocol != "TCP") return false;
    if (json_at(port, "port").is_null()) return true;
    auto first = number_of(port, "port"), last = std::max(first, number_of(port, "endPort"));
    return first <= kHbone && kHbone <= last;
  });
}

// Rules that name ports, none of them 15008: a CNI that enforces drops the tunnels.
bool blocks(const Json& policy, const char* direction) {
  const auto& rules = items_of(policy, "spec", direction);
  return !rules.empty() && std::ranges::none_of(rules, [&](const Json& rule) { return allows_port(rule); });
}

bool has_type(const Json& policy, const char* type) {
  const auto& types = items_of(policy, "spec", "policyTypes");
  return types.empty() || std::ranges::find(types, Json(type)) != types.end();
}

void say_blocked(const Cluster& cluster, const char* type, const char* direction, Found& found) {
  for (const auto& policy : cluster.facts.all("networkpolicies")) {
    if (!has_type(policy, type) || !blocks(policy, direction)) continue;
    auto pods = cluster.select(ns_of(policy), Json::object());
    auto hit = std::ranges::count_if(pods, [&](const Json* pod) {
      return cluster.enrolled(*pod) && selected_by(json_at(policy, "spec", "podSelector"), labels_of(*pod));
    });
    if (hit > 0)
      found(name_of(policy),
            fmt::format("it allows {} at some ports and not at 15008, where the mesh's traffic of {} pods "
                        "goes: a CNI that enforces it drops that",
                        direction, hit),
            fmt::format("allow TCP 15008 beside them; agents hold tunnels to your own ports: `kubectl edit "
                        "networkpolicy {} -n {}`",
                        text_of(policy, "metadata", "name"), ns_of(policy)));
  }
}
void ingress_blocked(const Cluster& cluster, Found& found) {
  say_blocked(cluster, "Ingress", "ingress", found);
}
void egress_blocked(const Cluster& cluster, Found& found) {
  say_blocked(cluster, "Egress", "egress", found);
}

using enum Severity;
constexpr auto kAlways = When::always;
const Check kChecks[] = {
    {"NM1406",
     info,
     kAlways,
     "Pods in the node's network in a namespace of the mesh",
     "They share the node's addresses and are never enrolled.",
     {"pods", "namespaces"},
     host_network},
    {"NM1407",
     info,
     kAlways,
     "Pods have opted out",
     "Label istio.io/dataplane-mode=none.",
     {"pods", "namespaces"},
     opted_out},
    {"NM1408",
     warning,
     kAlways,
     "A pod with an Istio sidecar in a namespace of the mesh",
     "It is not enrolled; the sidecar serves it, by its own certificates.",
     {"pods", "namespaces"},
     sidecar},
    {"NM1409",
     warning,
     kAlways,
     "A sandboxed pod in a namespace of the mesh",
     "gVisor and Kata keep the pod's sockets to themselves.",
     {"pods", "namespaces", "runtimeclasses"},
     sandboxed},
    {"NM1410",
     error,
     kAlways,
     "A pod is in two meshes",
     "Linkerd's proxy and this mesh would take each other's traffic.",
     {"pods", "namespaces"},
     linkerd_proxy},
    {"NM1411",
     warning,
     kAlways,
     "A container listens at 15008",
     "The port is the mesh's in every pod of it.",
     {"pods", "namespaces"},
     own_port_taken},
    {"NM1412",
     info,
     kAlways,
     "A container asks a sidecar",
     "Jobs that were written for sidecars tell it to quit; here they just end.",
     {"pods", "namespaces"},
     waits_for_a_sidecar},
    {"NM1413",
     info,
     kAlways,
     "A container may change its pod's network",
     "With NET_ADMIN a pod can lead its own traffic around the mesh; others are safe from it.",
     {"pods", "namespaces"},
     net_admin},
    {"NM1414",
     info,
     kAlways,
     "Pods are older than their namespace's label",
     "Open connections stay as they are; new ones are taken.",
     {"pods", "namespaces"},
     older_than_label},
    {"NM1415",
     info,
     kAlways,
     "A namespace of the mesh accepts plaintext",
     "PERMISSIVE is the default, so that clients can move in one by one.",
     {"pods", "namespaces", "peerauthentications"},
     plaintext_accepted},
    {"NM1416",
     error,
     kAlways,
     "A NetworkPolicy closes 15008 for ingress",
     "A CNI sees 15008 in place of a connection's own port.",
     {"pods", "namespaces", "networkpolicies"},
     ingress_blocked},
    {"NM1417",
     error,
     kAlways,
     "A NetworkPolicy closes 15008 for egress",
     "The same for clients.",
     {"pods", "namespaces", "networkpolicies"},
     egress_blocked},
};

}  // namespace

std::span<const Check> traffic_checks() {
  return kChecks;
}

}  // namespace nodemesh::ctl

// The cluster as such: versions, rights, other meshes and CNIs, API kinds.
#include <algorithm>

#include <fmt/format.h>

#include "ctl/check.h"
#include "ctl/check_own.h"
#include "ctl/check_words.h"
#include "ctl/json_at.h"
#include "translate/translate.h"

namespace nodemesh::ctl {
namespace {

constexpr std::pair kOldest{1, 30};
constexpr std::pair kTested{1, 34};

std::string server_version(const Cluster& cluster) {
  return text_of(cluster.facts.server, "gitVersion");
}

void kubernetes_too_old(const Cluster& cluster, Found& found) {
  auto version = version_in(server_version(cluster));
  if (version && *version < kOldest) {
    found("API server", fmt::format("Kubernetes {} is older than 1.30", server_version(cluster)),
          "upgrade the control plane, then `kubectl version`");
  }
}

void kubernetes_untested(const Cluster& cluster, Found& found) {
  auto version = version_in(server_version(cluster));
  if (version && *version > kTested) {
    found("API server",
          fmt::format("Kubernetes {} is newer than 1.34, the newest that this version is tested with",
                      server_version(cluster)),
          "nothing has to be done; after installing run `meshctl check`");
  }
}

void right_missing(const Cluster& cluster, Found& found) {
  for (const auto& right : cluster.facts.rights) {
    if (right.allowed) continue;
    auto what = right.resource + (right.group.empty() ? "" : "." + right.group);
    found("you", fmt::format("you may not {} {}", right.verb, what),
          fmt::format("ask for cluster-admin for the installation; then `kubectl auth can-i {} {} -n {}`",
                      right.verb, what, cluster.facts.ns));
  }
}

void pod_security(const Cluster& cluster, Found& found) {
  const auto* ns = cluster.object("namespaces", "", cluster.facts.ns);
  if (ns == nullptr) return;
  auto level = text_of(*ns, "metadata", "labels", "pod-security.kubernetes.io/enforce");
  if (level.empty() || level == "privileged") return;
  found(name_of(*ns),
        fmt::format("its Pod Security level is {}, which refuses the agents' capabilities and host paths",
                    level),
        fmt::format("kubectl label namespace {} pod-security.kubernetes.io/enforce=privileged --overwrite",
                    cluster.facts.ns));
}

bool is_daemon_of(const Json& daemon, std::string_view name) {
  return text_of(daemon, "metadata", "name") == name ||
         text_of(daemon, "metadata", "labels", "app") == name ||
         text_of(daemon, "metadata", "labels", "k8s-app") == name;
}

// The first node that has both an agent and a pod of the DaemonSet; "" where none has.
std::string shared_node(const Cluster& cluster, const Json& daemon) {
  auto agents = agents_by_node(cluster);
  const auto& selector = json_at(daemon, "spec", "selector");
  for (const auto& pod : cluster.facts.all("pods")) {
    if (ns_of(pod) != ns_of(daemon) || is_finished_pod(pod) || !selected_by(selector, labels_of(pod)))
      continue;
    if (auto node = node_of(pod); agents.contains(node)) return node;
  }
  return "";
}

void ztunnel_runs(const Cluster& cluster, Found& found) {
  const auto* ours = controller(cluster);
  bool together = ours != nullptr && has_flag(*ours, "--interop-istio");
  for (const auto& daemon : cluster.facts.all("daemonsets")) {
    if (!is_daemon_of(daemon, "ztunnel")) continue;
    auto node = together ? shared_node(cluster, daemon) : "";
    if (together && node.empty()) continue;
    if (together) {
      found(name_of(daemon),
            fmt::format("node {} has both Istio's ztunnel and a nodemesh agent, which take the same pods",
                        node),
            fmt::format(
                "interop.istio is for ztunnels on other nodes: keep one of them off {} by nodeSelector or "
                "affinity, `kubectl edit daemonset {} -n {}`",
                node, text_of(daemon, "metadata", "name"), ns_of(daemon)));
      continue;
    }
    found(name_of(daemon), "Istio's ztunnel runs here: both would take the pods of a labelled namespace",
          fmt::format(
              "uninstall ambient first: `istioctl uninstall --purge`, or `kubectl delete daemonset {} -n {}`",
              text_of(daemon, "metadata", "name"), ns_of(daemon)));
  }
}

void istio_cni_runs(const Cluster& cluster, Found& found) {
  for (const auto& daemon : cluster.facts.all("daemonsets")) {
    if (!is_daemon_of(daemon, "istio-cni-node")) continue;
    found(name_of(daemon),
          "Istio's CNI agent runs here; with ambient enabled it redirects the pods of labelled namespaces to "
          "ztunnel",
          fmt::format(
              "disable ambient in it (AMBIENT_ENABLED): `kubectl edit configmap istio-cni-config -n {}`",
              ns_of(daemon)));
  }
}

void linkerd_runs(const Cluster& cluster, Found& found) {
  for (const auto& ns : cluster.facts.all("namespaces")) {
    if (text_of(ns, "metadata", "labels", "linkerd.io/is-control-plane") != "true") continue;
    found(name_of(ns), "Linkerd is installed; a pod with its proxy must not be in this mesh too",
          "look which pods have it: `kubectl get pods -A -l linkerd.io/control-plane-ns`");
  }
}

const Json* cilium(const Cluster& cluster) {
  return cluster.object("cilium", "kube-system", "cilium-config");
}

void cilium_socket_lb(const Cluster& cluster, Found& found) {
  const auto* config = cilium(cluster);
  if (config == nullptr) return;
  auto replaces = text_of(*config, "data", "kube-proxy-replacement");
  bool in_sockets =
      replaces == "true" || replaces == "strict" || text_of(*config, "data", "bpf-lb-sock") == "true";
  if (!in_sockets || text_of(*config, "data", "bpf-lb-sock-hostns-only") == "true") return;
  found(name_of(*config),
        "Cilium replaces Service addresses in pods' sockets, at the hook where nodemesh reads them; this is "
        "not tested together",
        "set socketLB.hostNamespaceOnly=true in Cilium's values, then `kubectl -n kube-system rollout "
        "restart daemonset/cilium`");
}

void cilium_encrypts(const Cluster& cluster, Found& found) {
  const auto* config = cilium(cluster);
  if (config == nullptr) return;
  for (const char* way : {"enable-wireguard", "enable-ipsec"}) {
    if (text_of(*config, "data", way) == "true")
      found(name_of(*config),
            fmt::format("Cilium encrypts between nodes ({}), so the mesh's traffic is encrypted twice", way),
            "if the mesh suffices, turn Cilium's off: `kubectl -n kube-system edit configmap cilium-config`");
  }
}

void cilium_exclusive(const Cluster& cluster, Found& found) {
  const auto* config = cilium(cluster);
  if (config == nullptr || text_of(*config, "data", "enable-policy") != "always") return;
  found(
      name_of(*config),
      "Cilium denies whatever no policy allows (enable-policy: always), so port 15008 between pods is closed",
      "allow TCP 15008 between the mesh's pods: `kubectl get ciliumnetworkpolicies -A`");
}

void calico_ebpf(const Cluster& cluster, Found& found) {
  for (const auto& felix : cluster.facts.all("felixconfigurations")) {
    if (!flag_of(felix, "spec", "bpfEnabled") ||
        text_of(felix, "spec", "bpfConnectTimeLoadBalancing") == "Disabled")
      continue;
    found(name_of(felix),
          "Calico's eBPF data plane replaces Service addresses at connect time, where nodemesh reads them; "
          "this is not tested together",
          "kubectl patch felixconfiguration default --type merge -p "
          "'{\"spec\":{\"bpfConnectTimeLoadBalancing\":\"Disabled\"}}'");
  }
}

std::string crd_name(const kube::Kind& kind) {
  std::string plural;
  for (unsigned char c : kind.name) plural += static_cast<char>(std::tolower(c));
  if (plural.ends_with('y')) plural.replace(plural.size() - 1, 1, "ie");
  return plural + "s." + std::string(kind.group);
}

std::vector<const kube::Kind*> istio_kinds() {
  std::vector<const kube::Kind*> out;
  for (const auto& kind : translate::kinds()) {
    if (kind.group.ends_with("istio.io")) out.push_back(&kind);
  }
  return out;
}

void istio_crd_absent(const Cluster& cluster, Found& found) {
  for (const auto* kind : istio_kinds()) {
    if (cluster.object("crds", "", crd_name(*kind)) != nullptr) continue;
    found("CustomResourceDefinition " + crd_name(*kind),
          fmt::format("it is not installed, so nobody can write a {}", kind->name),
          "the packed chart brings it; without Helm `meshctl upgrade --crds FILE`");
  }
}

bool serves(const Json& crd, std::string_view version) {
  return std::ranges::any_of(items_of(crd, "spec", "versions"), [&](const Json& one) {
    return text_of(one, "name") == version && flag_of(one, "served");
  });
}

void istio_crd_version(const Cluster& cluster, Found& found) {
  for (const auto* kind : istio_kinds()) {
    const auto* crd = cluster.object("crds", "", crd_name(*kind));
    if (crd == nullptr || std::ranges::any_of(kind->versions, [&](auto one) { return serves(*crd, one); }))
      continue;
    found(name_of(*crd),
          fmt::format("it serves no version that agents read ({})", fmt::join(kind->versions, ", ")),
          fmt::format("update Istio's CRDs; `kubectl get crd {} -o jsonpath='{{.spec.versions[*].name}}'`",
                      crd_name(*kind)));
  }
}

constexpr const char* kSliceCrd = "workloadslices.nodemesh.dev";

void slice_crd_absent(const Cluster& cluster, Found& found) {
  if (cluster.object("crds", "", kSliceCrd) == nullptr)
    found(std::string("CustomResourceDefinition ") + kSliceCrd,
          "it is gone: no node hears of the pods of another", "meshctl upgrade");
}

void slice_crd_broken(const Cluster& cluster, Found& found) {
  const auto* crd = cluster.object("crds", "", kSliceCrd);
  if (crd == nullptr) return;
  if (!serves(*crd, "v1alpha1")) {
    found(name_of(*crd), "it does not serve v1alpha1, which agents read and write", "meshctl upgrade");
  } else if (condition_of(*crd, "Established") != "True") {
    found(name_of(*crd), "the API server has not established it",
          fmt::format("kubectl describe crd {}", kSliceCrd));
  }
}

void second_mesh(const Cluster& cluster, Found& found) {
  for (const auto& daemon : cluster.facts.all("daemonsets")) {
    if (text_of(daemon, "metadata", "name") != "nodemesh-agent" || ns_of(daemon) == cluster.facts.ns)
      continue;
    found(name_of(daemon), "agents of another installation run here; a node has room for one",
          fmt::format("look at it with `meshctl check -n {}`, and uninstall one of the two", ns_of(daemon)));
  }
}

void no_admission_policies(const Cluster& cluster, Found& found) {
  if (!cluster.facts.served("validatingadmissionpolicies"))
    found("API server",
          "it does not serve admissionregistration.k8s.io/v1 ValidatingAdmissionPolicy, which keeps one "
          "node's agent from speaking for another",
          "upgrade to Kubernetes 1.30 or enable the feature; `kubectl api-resources "
          "--api-group=admissionregistration.k8s.io`");
}

bool names(const Json& list, std::initializer_list<std::string_view> wanted) {
  return list.is_array() && std::ranges::any_of(list, [&](const Json& item) {
           return item.is_string() &&
                  std::ranges::find(wanted, item.get_ref<const std::string&>()) != wanted.end();
         });
}

bool stops_pods(const Json& hook) {
  if (text_of(hook, "failurePolicy") == "Ignore") return false;
  return std::ranges::any_of(items_of(hook, "rules"), [](const Json& rule) {
    return names(json_at(rule, "resources"), {"pods", "*", "*/*"}) &&
           names(json_at(rule, "operations"), {"CREATE", "*"}) &&
           names(json_at(rule, "apiGroups"), {"", "*"});
  });
}

bool selects(const Json& hook, const char* by, const std::map<std::string, std::string>& labels) {
  const auto& selector = json_at(hook, by);
  return !selector.is_object() || selected_by(selector, labels);
}

void webhook_fails_closed(const Cluster& cluster, Found& found) {
  const auto* ns = cluster.object("namespaces", "", cluster.facts.ns);
  auto labels = ns == nullptr ? std::map<std::string, std::string>{} : labels_of(*ns);
  labels["kubernetes.io/metadata.name"] = cluster.facts.ns;
  const auto* daemon = agent_set(cluster);
  auto agents = daemon == nullptr ? std::map<std::string, std::string>{}
                                  : labels_of(json_at(*daemon, "spec", "template"));
  agents["app.kubernetes.io/name"] = "nodemesh";
  agents["app.kubernetes.io/component"] = "agent";
  for (const char* list : {"validatingwebhooks", "mutatingwebhooks"}) {
    for (const auto& config : cluster.facts.all(list)) {
      for (const auto& hook : items_of(config, "webhooks")) {
        if (!stops_pods(hook) || !selects(hook, "namespaceSelector", labels) ||
            !selects(hook, "objectSelector", agents))
          continue;
        found(name_of(config),
              fmt::format(
                  "webhook {} fails closed and is asked about pods in {}: while it is down no agent starts",
                  text_of(hook, "name"), cluster.facts.ns),
              fmt::format("exclude the namespace in its namespaceSelector: `kubectl get {} {} -o yaml`",
                          text_of(config, "kind"), text_of(config, "metadata", "name")));
      }
    }
  }
}

void quota_used_up(const Cluster& cluster, Found& found) {
  for (const auto& quota : cluster.facts.all("resourcequotas")) {
    auto hard = text_of(quota, "status", "hard", "pods"), used = text_of(quota, "status", "used", "pods");
    auto limit = bytes_in(hard), now = bytes_in(used);
    if (limit && now && *now >= *limit)
      found(name_of(quota), fmt::format("{} of {} pods are used: no agent can be added", used, hard),
            fmt::format("kubectl edit resourcequota {} -n {}", text_of(quota, "metadata", "name"),
                        ns_of(quota)));
  }
}

using enum Severity;
const Check kChecks[] = {
    {"NM1001",
     error,
     When::always,
     "Kubernetes is older than 1.30",
     "The admission policy for WorkloadSlices needs 1.30, which puts the node's name into pods' tokens. "
     "Upgrade the control plane.",
     {"server"},
     kubernetes_too_old},
    {"NM1002",
     info,
     When::always,
     "Kubernetes is newer than what was tested",
     "It will likely work; look at `meshctl check` after installing.",
     {"server"},
     kubernetes_untested},
    {"NM1003",
     error,
     When::pre,
     "You lack a right that the installation needs",
     "An installation makes cluster roles, CRDs and admission policies. Ask for the right, or let somebody "
     "with cluster-admin install.",
     {"rights"},
     right_missing},
    {"NM1004",
     error,
     When::always,
     "Pod Security refuses the agents",
     "Agents need capabilities and host paths, which only level privileged allows; label nodemesh's own "
     "namespace, no other.",
     {"namespaces"},
     pod_security},
    {"NM1005",
     error,
     When::always,
     "Istio's ztunnel runs",
     "Two meshes would take the same pods by the same label. Uninstall ambient first, or with interop.istio "
     "run "
     "each on nodes of its own.",
     {"daemonsets", "deployments", "pods"},
     ztunnel_runs},
    {"NM1006",
     warning,
     When::always,
     "Istio's CNI agent runs",
     "Harmless for sidecars; with ambient it takes the same pods by the same label.",
     {"daemonsets"},
     istio_cni_runs},
    {"NM1007",
     info,
     When::always,
     "Linkerd runs",
     "Both can serve one cluster as long as no pod is in both (NM1410).",
     {"namespaces"},
     linkerd_runs},
    {"NM1008",
     warning,
     When::always,
     "Cilium's socket load balancing is on for pods",
     "It rewrites Service addresses at the hook where nodemesh reads them. Limit it to the host's namespace.",
     {"cilium"},
     cilium_socket_lb},
    {"NM1009",
     info,
     When::always,
     "Cilium encrypts too",
     "Traffic between nodes is encrypted twice, which costs processor time and nothing else.",
     {"cilium"},
     cilium_encrypts},
    {"NM1010",
     warning,
     When::always,
     "Cilium denies by default",
     "With enable-policy: always a CNI policy must allow port 15008 between the mesh's pods.",
     {"cilium"},
     cilium_exclusive},
    {"NM1011",
     warning,
     When::always,
     "Calico's connect-time load balancing is on",
     "It rewrites Service addresses at the hook where nodemesh reads them. Disable it; Calico then balances "
     "packets.",
     {"felixconfigurations"},
     calico_ebpf},
    {"NM1012",
     info,
     When::always,
     "A CRD of Istio's API is not installed",
     "Nothing is wrong as long as nobody wants such policies. The packed chart brings those that agents "
     "read.",
     {"crds"},
     istio_crd_absent},
    {"NM1013",
     error,
     When::always,
     "A CRD of Istio's API serves no version that agents read",
     "Objects of it would not be seen. Update the CRD.",
     {"crds"},
     istio_crd_version},
    {"NM1014",
     error,
     When::installed,
     "The WorkloadSlice CRD is absent",
     "Without it nodes do not hear of each other's pods. An upgrade brings it back; agents write their "
     "slices anew.",
     {"crds"},
     slice_crd_absent},
    {"NM1015",
     error,
     When::installed,
     "The WorkloadSlice CRD is not usable",
     "Agents read and write v1alpha1. An upgrade restores it.",
     {"crds"},
     slice_crd_broken},
    {"NM1016",
     error,
     When::always,
     "Another nodemesh is installed",
     "A node has room for one agent: programs, ports and slices are one per node.",
     {"daemonsets"},
     second_mesh},
    {"NM1017",
     error,
     When::always,
     "ValidatingAdmissionPolicy is not served",
     "Without it any node's agent could claim the pods of another.",
     {"validatingadmissionpolicies"},
     no_admission_policies},
    {"NM1018",
     warning,
     When::always,
     "A webhook that fails closed is asked about nodemesh's pods",
     "When its server is down, or in the mesh and cut off, no agent can start again. Exclude nodemesh's "
     "namespace.",
     {"validatingwebhooks", "mutatingwebhooks", "namespaces", "daemonsets"},
     webhook_fails_closed},
    {"NM1019",
     warning,
     When::always,
     "A ResourceQuota of nodemesh's namespace is used up",
     "A new node would get no agent. Raise it.",
     {"resourcequotas"},
     quota_used_up},
};

}  // namespace

std::span<const Check> cluster_checks() {
  return kChecks;
}

}  // namespace nodemesh::ctl

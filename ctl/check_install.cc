// nodemesh itself: agents, controller, certificates, admission policy, slices.
#include <openssl/x509.h>

#include <algorithm>
#include <set>

#include <fmt/format.h>

#include "ctl/check.h"
#include "ctl/check_words.h"
#include "ctl/json_at.h"
#include "tls/openssl.h"

namespace nodemesh::ctl {
namespace {

constexpr int64_t kDay = 24 * 3600;
constexpr int64_t kRootWarning = 30 * kDay;
constexpr double kProxyFloor = 128.0 * (1 << 20);
constexpr int64_t kManyRestarts = 3;

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

// Whether the agents ask our own controller for certificates.
bool wants_controller(const Cluster& cluster) {
  const auto* daemon = agent_set(cluster);
  return daemon == nullptr || flag_of_agent(*daemon, "--ca-address").starts_with("nodemesh-controller.");
}

void no_agents(const Cluster& cluster, Found& found) {
  if (agent_set(cluster) == nullptr)
    found(fmt::format("DaemonSet {}/nodemesh-agent", cluster.facts.ns),
          "it is absent: nodemesh is not installed in this namespace",
          "`meshctl install`, or name the namespace: `meshctl check -n NAMESPACE`");
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
  if ((surge.is_number_integer() && surge != 0) || (surge.is_string() && surge != "0" && surge != "0%"))
    found(name_of(*daemon),
          "maxSurge is not 0, but two agents cannot serve a node at once: a roll-out would not end",
          "set agent.rollingUpdate.maxSurge=0, then `meshctl upgrade`");
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
  if (wants_controller(cluster) && agent_set(cluster) != nullptr && controller(cluster) == nullptr)
    found(fmt::format("Deployment {}/nodemesh-controller", cluster.facts.ns),
          "it is absent, and agents ask it for certificates",
          "`meshctl upgrade`, or name another authority by ca.address");
}

void controller_not_ready(const Cluster& cluster, Found& found) {
  const auto* deployment = controller(cluster);
  if (deployment == nullptr || number_of(*deployment, "status", "readyReplicas") > 0) return;
  auto pods = controllers(cluster);
  found(name_of(*deployment),
        fmt::format("no replica is ready, so no new certificate is signed: {}",
                    pods.empty() ? "it has no pod" : why_not_ready(*pods.front())),
        fmt::format("kubectl logs -n {} deployment/nodemesh-controller --tail 20", cluster.facts.ns));
}

void one_controller(const Cluster& cluster, Found& found) {
  const auto* deployment = controller(cluster);
  if (deployment != nullptr && number_of(*deployment, "spec", "replicas") == 1)
    found(name_of(*deployment), "it has one replica: while that moves, new pods get no certificate",
          fmt::format(
              "kubectl scale deployment/nodemesh-controller -n {} --replicas 2, and set controller.replicas",
              cluster.facts.ns));
}

const Json* lease_of(const Cluster& cluster) {
  return cluster.object("leases", cluster.facts.ns, "nodemesh-controller");
}

void no_leader(const Cluster& cluster, Found& found) {
  const auto* lease = lease_of(cluster);
  if (controller(cluster) == nullptr ||
      (lease != nullptr && !text_of(*lease, "spec", "holderIdentity").empty()))
    return;
  found(fmt::format("Lease {}/nodemesh-controller", cluster.facts.ns),
        "no replica of the controller leads: the trust bundle is not kept up to date",
        fmt::format("kubectl logs -n {} deployment/nodemesh-controller --tail 20", cluster.facts.ns));
}

void leader_gone(const Cluster& cluster, Found& found) {
  const auto* lease = lease_of(cluster);
  if (lease == nullptr || controller(cluster) == nullptr) return;
  auto holder = text_of(*lease, "spec", "holderIdentity");
  if (holder.empty()) return;
  for (const auto* pod : controllers(cluster)) {
    if (text_of(*pod, "metadata", "name") == holder) return;
  }
  found(name_of(*lease), fmt::format("its holder {} is no pod of the controller", holder),
        fmt::format("another leads after 15 s; if not, `kubectl get lease nodemesh-controller -n {} -o yaml`",
                    cluster.facts.ns));
}

struct Root {
  std::string subject;
  int64_t ends = 0;
};

// Of the bundle that agents verify the controller by. An error is a sentence.
Result<std::vector<Root>> roots_of(const Cluster& cluster) {
  const auto* map = cluster.object("configmaps", cluster.facts.ns, "nodemesh-root-cert");
  if (map == nullptr) return fail("it is absent");
  auto read = tls::parse_certificates(text_of(*map, "data", "root-cert.pem"));
  if (!read) return fail("key root-cert.pem: " + read.error().message);
  if (read->empty()) return fail("key root-cert.pem has no certificate");
  std::vector<Root> roots;
  for (const auto& certificate : *read) {
    tm ends{};
    ASN1_TIME_to_tm(X509_get0_notAfter(certificate.get()), &ends);
    char subject[256] = "";
    X509_NAME_oneline(X509_get_subject_name(certificate.get()), subject, sizeof subject);
    roots.push_back({subject, ::timegm(&ends)});
  }
  return roots;
}

std::string bundle_name(const Cluster& cluster) {
  return fmt::format("ConfigMap {}/nodemesh-root-cert", cluster.facts.ns);
}

void no_bundle(const Cluster& cluster, Found& found) {
  if (controller(cluster) == nullptr) return;
  if (auto roots = roots_of(cluster); !roots)
    found(bundle_name(cluster), roots.error().message + ": agents that start cannot verify the controller",
          fmt::format("kubectl logs -n {} deployment/nodemesh-controller --tail 20", cluster.facts.ns));
}

void root_expired(const Cluster& cluster, Found& found) {
  for (const auto& root : roots_of(cluster).value_or(std::vector<Root>{})) {
    if (root.ends <= cluster.facts.now)
      found(bundle_name(cluster),
            fmt::format("root {} has expired: what it vouches for is refused", root.subject),
            fmt::format(
                "kubectl -n {} annotate secret nodemesh-ca nodemesh.dev/rotate-root=\"$(date)\" --overwrite",
                cluster.facts.ns));
  }
}

void root_expires(const Cluster& cluster, Found& found) {
  for (const auto& root : roots_of(cluster).value_or(std::vector<Root>{})) {
    auto left = root.ends - cluster.facts.now;
    if (left > 0 && left < kRootWarning)
      found(bundle_name(cluster), fmt::format("root {} expires in {} days", root.subject, left / kDay),
            fmt::format("put a new one into Secret cacerts, or `kubectl -n {} annotate secret nodemesh-ca "
                        "nodemesh.dev/rotate-root=\"$(date)\" --overwrite`",
                        cluster.facts.ns));
  }
}

void cacerts_incomplete(const Cluster& cluster, Found& found) {
  if (!cluster.facts.cacerts_exists) return;
  const auto& keys = cluster.facts.cacerts_keys;
  auto lacks = [&](std::initializer_list<const char*> wanted) {
    std::string missing;
    for (const char* key : wanted) {
      if (std::ranges::find(keys, key) == keys.end())
        missing += (missing.empty() ? "" : ", ") + std::string(key);
    }
    return missing;
  };
  auto istio = lacks({"ca-cert.pem", "ca-key.pem", "root-cert.pem", "cert-chain.pem"});
  if (istio.empty() || lacks({"tls.crt", "tls.key", "ca.crt"}).empty()) return;
  found(fmt::format("Secret {}/cacerts", cluster.facts.ns),
        fmt::format("it lacks {}; the controller keeps what it signed with before, or does not start", istio),
        fmt::format("add the keys of docs/certificates.md; `kubectl describe secret cacerts -n {}`",
                    cluster.facts.ns));
}

constexpr const char* kPolicy = "workloadslices.nodemesh.dev";

void no_admission_policy(const Cluster& cluster, Found& found) {
  if (agent_set(cluster) != nullptr && cluster.object("validatingadmissionpolicies", "", kPolicy) == nullptr)
    found(std::string("ValidatingAdmissionPolicy ") + kPolicy,
          "it is absent: any node's agent may speak for the pods of another", "meshctl upgrade");
}

void admission_not_bound(const Cluster& cluster, Found& found) {
  if (agent_set(cluster) == nullptr) return;
  for (const auto& binding : cluster.facts.all("validatingadmissionpolicybindings")) {
    const auto& actions = items_of(binding, "spec", "validationActions");
    if (text_of(binding, "spec", "policyName") == kPolicy &&
        std::ranges::find(actions, Json("Deny")) != actions.end())
      return;
  }
  found(std::string("ValidatingAdmissionPolicyBinding ") + kPolicy,
        "no binding makes the admission policy deny: any node's agent may speak for the pods of another",
        "meshctl upgrade");
}

void admission_of_another_namespace(const Cluster& cluster, Found& found) {
  const auto* policy = cluster.object("validatingadmissionpolicies", "", kPolicy);
  if (policy == nullptr) return;
  bool named = std::ranges::any_of(items_of(*policy, "spec", "variables"), [&](const Json& variable) {
    return text_of(variable, "expression")
        .contains(fmt::format("serviceaccount:{}:nodemesh-agent", cluster.facts.ns));
  });
  if (!named)
    found(name_of(*policy),
          fmt::format("it does not name the service account of the agents in {}, so their slices are refused",
                      cluster.facts.ns),
          fmt::format("meshctl upgrade -n {}", cluster.facts.ns));
}

void agents_without_rights(const Cluster& cluster, Found& found) {
  if (agent_set(cluster) == nullptr) return;
  const auto* binding = cluster.object("clusterrolebindings", "", "nodemesh-agent");
  bool bound =
      binding != nullptr && std::ranges::any_of(items_of(*binding, "subjects"), [&](const Json& subject) {
        return text_of(subject, "name") == "nodemesh-agent" &&
               text_of(subject, "namespace") == cluster.facts.ns;
      });
  if (!bound)
    found("ClusterRoleBinding nodemesh-agent",
          fmt::format("it does not give the agents in {} their rights: they hear no news of the cluster",
                      cluster.facts.ns),
          fmt::format("meshctl upgrade -n {}", cluster.facts.ns));
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
    auto source = text_of(agent.status, "source");
    if (source == "disk" || source == "snapshot")
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

void certificate_missing(const Cluster& cluster, Found& found) {
  for (const auto& agent : cluster.facts.agents) {
    for (const auto& row : items_of(agent.certs, "items")) {
      auto state = text_of(row, "state");
      if (state != "missing" && state != "expired") continue;
      auto error = text_of(row, "error");
      found("Node " + agent.node,
            fmt::format("the certificate of {} is {}{}{}", text_of(row, "identity"), state,
                        error.empty() ? "" : ": ", error),
            fmt::format("meshctl get certs --node {}", agent.node));
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
     error,
     kInstalled,
     "maxSurge is not 0",
     "Two agents cannot serve a node at once yet.",
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
     {"deployments", "pods"},
     controller_not_ready},
    {"NM1213",
     info,
     kInstalled,
     "The controller has one replica",
     "With two, a node can be drained without a gap.",
     {"deployments"},
     one_controller},
    {"NM1214",
     warning,
     kInstalled,
     "No controller leads",
     "Nobody keeps the trust bundle and the roots up to date.",
     {"deployments", "leases"},
     no_leader},
    {"NM1215",
     warning,
     kInstalled,
     "The Lease's holder does not exist",
     "For 15 s after a crash that is so; longer means that nobody takes it over.",
     {"deployments", "leases", "pods"},
     leader_gone},
    {"NM1216",
     error,
     kInstalled,
     "There is no trust bundle",
     "Agents mount it to verify the controller.",
     {"deployments", "configmaps"},
     no_bundle},
    {"NM1217",
     error,
     kInstalled,
     "A root has expired",
     "Rotate it. An old root that has been replaced leaves the bundle by itself.",
     {"configmaps"},
     root_expired},
    {"NM1218",
     warning,
     kInstalled,
     "A root expires within 30 days",
     "A rotation takes two lifetimes of a certificate (docs/certificates.md).",
     {"configmaps"},
     root_expires},
    {"NM1219",
     error,
     kInstalled,
     "Secret cacerts lacks a key",
     "Only the names of its keys are read. docs/certificates.md has both forms.",
     {"cacerts"},
     cacerts_incomplete},
    {"NM1220",
     error,
     kInstalled,
     "The admission policy is absent",
     "It holds each agent to the slices of its own node.",
     {"daemonsets", "validatingadmissionpolicies"},
     no_admission_policy},
    {"NM1221",
     error,
     kInstalled,
     "The admission policy does not deny",
     "Its binding is absent or only warns.",
     {"daemonsets", "validatingadmissionpolicybindings"},
     admission_not_bound},
    {"NM1222",
     error,
     kInstalled,
     "The admission policy knows other agents",
     "It names the accounts of another namespace than the installed agents'.",
     {"validatingadmissionpolicies"},
     admission_of_another_namespace},
    {"NM1223",
     error,
     kInstalled,
     "Agents have no rights",
     "Their ClusterRoleBinding is absent or for another namespace.",
     {"daemonsets", "clusterrolebindings"},
     agents_without_rights},
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
     {"agents"},
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

std::span<const Check> install_checks() {
  return kChecks;
}

}  // namespace nodemesh::ctl

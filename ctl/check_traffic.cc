// Who is in the mesh and who is not, and what STRICT and NetworkPolicies do to those that are not.
#include <algorithm>
#include <set>

#include <fmt/format.h>

#include "ctl/check.h"
#include "ctl/check_words.h"
#include "ctl/json_at.h"

namespace nodemesh::ctl {
namespace {

constexpr const char* kMode = "istio.io/dataplane-mode";
constexpr uint16_t kHbone = 15008;

std::string app_of(const Json& pod) {
  for (const char* label : {"app.kubernetes.io/name", "app", "k8s-app"}) {
    if (auto name = text_of(pod, "metadata", "labels", label); !name.empty()) return name;
  }
  return "";
}

bool runs_image(const Json& pod, std::initializer_list<std::string_view> names) {
  return std::ranges::any_of(items_of(pod, "spec", "containers"), [&](const Json& container) {
    auto image = text_of(container, "image");
    return std::ranges::any_of(names, [&](auto name) { return image.contains(name); });
  });
}

bool is_scraper(const Json& pod) {
  auto app = app_of(pod);
  return app == "prometheus" || app == "vmagent" || app == "grafana-agent" || app == "alloy" ||
         runs_image(
             pod,
             {"/prometheus:", "/vmagent:", "/grafana/agent:", "/grafana/alloy:", "/opentelemetry-collector"});
}

bool is_ingress(const Json& pod) {
  auto app = app_of(pod);
  return app == "ingress-nginx" || app == "traefik" || app == "contour" || app == "envoy" ||
         app == "haproxy-ingress" || app == "kubernetes-ingress" || app == "istio-ingressgateway" ||
         app == "kong" ||
         runs_image(pod, {"ingress-nginx/controller", "traefik:", "projectcontour/", "haproxy-ingress",
                          "kong/kubernetes-ingress"});
}

// Those that run outside of the mesh, with what they are for.
template <class Is>
std::vector<const Json*> outside(const Cluster& cluster, Is is) {
  std::vector<const Json*> out;
  for (const auto& pod : cluster.facts.all("pods")) {
    if (is(pod) && !is_finished_pod(pod) && !cluster.enrolled(pod)) out.push_back(&pod);
  }
  return out;
}

std::string enrol(const Json& pod) {
  return fmt::format(
      "take the client into the mesh: `kubectl label namespace {} {}=ambient`, or allow the port by a "
      "PeerAuthentication with portLevelMtls PERMISSIVE",
      ns_of(pod), kMode);
}

uint16_t port_in(const std::string& text) {
  auto port = version_in(text + ".0");
  return port && port->first > 0 && port->first < 65536 ? static_cast<uint16_t>(port->first) : 0;
}

void scraper_shut_out(const Cluster& cluster, Found& found) {
  auto scrapers = outside(cluster, is_scraper);
  if (scrapers.empty()) return;
  std::map<std::string, size_t> shut;
  for (const auto& pod : cluster.facts.all("pods")) {
    if (text_of(pod, "metadata", "annotations", "prometheus.io/scrape") != "true") continue;
    auto port = port_in(text_of(pod, "metadata", "annotations", "prometheus.io/port"));
    if (port ? cluster.strict_at(pod, port) : cluster.strict(pod)) ++shut[ns_of(pod)];
  }
  for (const auto& [ns, count] : shut)
    found(name_of(*scrapers.front()),
          fmt::format(
              "it is outside of the mesh and scrapes {} pods of {} by annotation, which STRICT closes to it",
              count, ns),
          enrol(*scrapers.front()));
}

// Of a ServiceMonitor or PodMonitor: the namespaces that it looks into.
bool looks_into(const Json& monitor, const std::string& ns) {
  if (flag_of(monitor, "spec", "namespaceSelector", "any")) return true;
  const auto& names = items_of(monitor, "spec", "namespaceSelector", "matchNames");
  if (names.empty()) return ns_of(monitor) == ns;
  return std::ranges::find(names, Json(ns)) != names.end();
}

size_t strict_targets(const Cluster& cluster, const Json& monitor, const char* list) {
  size_t count = 0;
  for (const auto& object : cluster.facts.all(list)) {
    if (!looks_into(monitor, ns_of(object)) ||
        !selected_by(json_at(monitor, "spec", "selector"), labels_of(object)))
      continue;
    if (list == std::string_view("pods")) {
      count += cluster.strict(object);
      continue;
    }
    const auto& selector = json_at(object, "spec", "selector");
    if (!selector.is_object() || selector.empty()) continue;
    for (const auto* pod : cluster.select(ns_of(object), selector)) count += cluster.strict(*pod);
  }
  return count;
}

void monitor_shut_out(const Cluster& cluster, Found& found) {
  auto scrapers = outside(cluster, is_scraper);
  if (scrapers.empty()) return;
  for (const auto& [list, targets] :
       {std::pair("servicemonitors", "services"), std::pair("podmonitors", "pods")}) {
    for (const auto& monitor : cluster.facts.all(list)) {
      if (auto count = strict_targets(cluster, monitor, targets))
        found(name_of(monitor),
              fmt::format("it selects {} pods that STRICT closes to {}, which is outside of the mesh", count,
                          name_of(*scrapers.front())),
              enrol(*scrapers.front()));
    }
  }
}

std::set<std::string> backends_of(const Json& ingress) {
  std::set<std::string> out;
  auto add = [&](const Json& backend) {
    if (auto name = text_of(backend, "service", "name"); !name.empty()) out.insert(name);
  };
  add(json_at(ingress, "spec", "defaultBackend"));
  for (const auto& rule : items_of(ingress, "spec", "rules")) {
    for (const auto& path : items_of(rule, "http", "paths")) add(json_at(path, "backend"));
  }
  return out;
}

// The first pod of a Service that refuses plaintext; null when none does.
const Json* strict_pod_of(const Cluster& cluster, std::string_view ns, std::string_view name) {
  const auto* service = cluster.object("services", ns, name);
  if (service == nullptr) return nullptr;
  const auto& selector = json_at(*service, "spec", "selector");
  if (!selector.is_object() || selector.empty()) return nullptr;
  for (const auto* pod : cluster.select(ns, selector)) {
    if (cluster.strict(*pod)) return pod;
  }
  return nullptr;
}

void ingress_shut_out(const Cluster& cluster, Found& found) {
  auto controllers = outside(cluster, is_ingress);
  if (controllers.empty()) return;
  for (const auto& ingress : cluster.facts.all("ingresses")) {
    for (const auto& backend : backends_of(ingress)) {
      if (strict_pod_of(cluster, ns_of(ingress), backend) == nullptr) continue;
      found(name_of(ingress),
            fmt::format("its backend Service {} is STRICT, and ingress controller {} is outside of the mesh: "
                        "it gets no answer",
                        backend, name_of(*controllers.front())),
            enrol(*controllers.front()));
    }
  }
}

void outside_port(const Cluster& cluster, Found& found) {
  for (const auto& service : cluster.facts.all("services")) {
    auto type = text_of(service, "spec", "type");
    if (type != "NodePort" && type != "LoadBalancer") continue;
    if (strict_pod_of(cluster, ns_of(service), text_of(service, "metadata", "name")) != nullptr)
      found(name_of(service),
            fmt::format("it is a {} of STRICT pods: whoever comes from outside of the cluster has no "
                        "identity and is refused",
                        type),
            "put a gateway in the mesh before it, or make the port PERMISSIVE: `kubectl get "
            "peerauthentications -A`");
  }
}

// The API server has no identity.
void say_api_backend(const Cluster& cluster, const Json& object, const Json& service, Found& found) {
  auto ns = text_of(service, "namespace"), name = text_of(service, "name");
  if (name.empty() || strict_pod_of(cluster, ns, name) == nullptr) return;
  found(name_of(object),
        fmt::format(
            "the API server asks Service {}/{}, whose pods are STRICT: it has no identity and is refused", ns,
            name),
        fmt::format("make that port PERMISSIVE, or `kubectl label pod -n {} --all {}=none`", ns, kMode));
}

void api_server_shut_out(const Cluster& cluster, Found& found) {
  for (const char* list : {"validatingwebhooks", "mutatingwebhooks"}) {
    for (const auto& config : cluster.facts.all(list)) {
      for (const auto& hook : items_of(config, "webhooks"))
        say_api_backend(cluster, config, json_at(hook, "clientConfig", "service"), found);
    }
  }
  for (const auto& service : cluster.facts.all("apiservices"))
    say_api_backend(cluster, service, json_at(service, "spec", "service"), found);
  for (const auto& crd : cluster.facts.all("crds"))
    say_api_backend(cluster, crd, json_at(crd, "spec", "conversion", "webhook", "clientConfig", "service"),
                    found);
}

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
    {"NM1401",
     warning,
     kAlways,
     "Prometheus is shut out by STRICT",
     "A scraper outside of the mesh has no identity. Take it into the mesh, or make the metrics port "
     "PERMISSIVE.",
     {"pods", "namespaces", "peerauthentications"},
     scraper_shut_out},
    {"NM1402",
     warning,
     kAlways,
     "A monitor's targets are shut to Prometheus",
     "The same for ServiceMonitor and PodMonitor.",
     {"pods", "namespaces", "services", "peerauthentications", "servicemonitors", "podmonitors"},
     monitor_shut_out},
    {"NM1403",
     error,
     kAlways,
     "An ingress controller is shut out by STRICT",
     "It has no identity, so its backends refuse it. Take it into the mesh.",
     {"pods", "namespaces", "services", "peerauthentications", "ingresses"},
     ingress_shut_out},
    {"NM1404",
     warning,
     kAlways,
     "A NodePort or LoadBalancer of STRICT pods",
     "Clients from outside of the cluster have no identity.",
     {"pods", "namespaces", "services", "peerauthentications"},
     outside_port},
    {"NM1405",
     error,
     kAlways,
     "The API server is shut out by STRICT",
     "Webhooks, aggregated APIs and conversions are asked by the API server, which has no identity.",
     {"pods", "namespaces", "services", "peerauthentications", "validatingwebhooks", "mutatingwebhooks",
      "apiservices", "crds"},
     api_server_shut_out},
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

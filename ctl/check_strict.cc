// Whom STRICT shuts out: scrapers, ingress controllers, the API server, clients from outside of the cluster.
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
};

}  // namespace

std::span<const Check> strict_checks() {
  return kChecks;
}

}  // namespace nodemesh::ctl

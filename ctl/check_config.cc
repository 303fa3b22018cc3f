// Labels, Services and kinds that are not read.
#include <algorithm>

#include <fmt/format.h>

#include "ctl/check.h"
#include "ctl/check_words.h"
#include "ctl/json_at.h"

namespace nodemesh::ctl {
namespace {

constexpr const char* kMode = "istio.io/dataplane-mode";

std::string mode_of(const Json& object) {
  return text_of(object, "metadata", "labels", kMode);
}
std::string edit(const Json& object, std::string_view resource) {
  return fmt::format("kubectl edit {} {} -n {}", resource, text_of(object, "metadata", "name"),
                     ns_of(object));
}

void unknown_mode(const Cluster& cluster, Found& found) {
  for (const char* list : {"namespaces", "pods"}) {
    for (const auto& object : cluster.facts.all(list)) {
      auto mode = mode_of(object);
      if (!mode.empty() && mode != "ambient" && mode != "none")
        found(
            name_of(object),
            fmt::format("label {} has the value {}, which means nothing; it is ambient or none", kMode, mode),
            fmt::format("kubectl label {} {} {}=ambient --overwrite", text_of(object, "kind"),
                        text_of(object, "metadata", "name"), kMode));
    }
  }
}

void injected_too(const Cluster& cluster, Found& found) {
  for (const auto& ns : cluster.facts.all("namespaces")) {
    if (mode_of(ns) != "ambient") continue;
    bool injected = text_of(ns, "metadata", "labels", "istio-injection") == "enabled" ||
                    !text_of(ns, "metadata", "labels", "istio.io/rev").empty() ||
                    text_of(ns, "metadata", "annotations", "linkerd.io/inject") == "enabled";
    if (injected)
      found(name_of(ns), "it is in the mesh and asks for sidecars too: pods with a sidecar are not enrolled",
            fmt::format("kubectl label namespace {} istio-injection- istio.io/rev-",
                        text_of(ns, "metadata", "name")));
  }
}

void waypoint_wanted(const Cluster& cluster, Found& found) {
  for (const char* list : {"namespaces", "services", "pods"}) {
    for (const auto& object : cluster.facts.all(list)) {
      if (auto name = text_of(object, "metadata", "labels", "istio.io/use-waypoint");
          !name.empty() && name != "none")
        found(name_of(object),
              fmt::format("it asks for waypoint {}; there are none here, and the policies of a waypoint are "
                          "not enforced",
                          name),
              fmt::format("kubectl label {} {} istio.io/use-waypoint-", text_of(object, "kind"),
                          text_of(object, "metadata", "name")));
    }
  }
}

void own_namespace_enrolled(const Cluster& cluster, Found& found) {
  const auto* ns = cluster.object("namespaces", "", cluster.facts.ns);
  if (ns != nullptr && mode_of(*ns) == "ambient")
    found(
        name_of(*ns),
        "nodemesh's own namespace is in the mesh: agents need the controller before they can carry anything",
        fmt::format("kubectl label namespace {} {}-", cluster.facts.ns, kMode));
}

template <class Use>
void for_enrolled_services(const Cluster& cluster, Use&& use) {
  for (const auto& service : cluster.facts.all("services")) {
    const auto& selector = json_at(service, "spec", "selector");
    if (!selector.is_object() || selector.empty()) continue;
    auto pods = cluster.select(ns_of(service), selector);
    std::erase_if(pods, [&](const Json* pod) { return !cluster.enrolled(*pod); });
    if (!pods.empty()) use(service, pods);
  }
}

void port_without_protocol(const Cluster& cluster, Found& found) {
  for_enrolled_services(cluster, [&](const Json& service, const auto&) {
    for (const auto& port : items_of(service, "spec", "ports")) {
      auto protocol = text_of(port, "protocol");
      if ((!protocol.empty() && protocol != "TCP") || !text_of(port, "name").empty() ||
          !text_of(port, "appProtocol").empty())
        continue;
      found(name_of(service),
            fmt::format(
                "port {} has neither a name nor an appProtocol: it is carried as TCP, and its metrics say so",
                number_of(port, "port")),
            edit(service, "service"));
    }
  });
}

void udp_port(const Cluster& cluster, Found& found) {
  for_enrolled_services(cluster, [&](const Json& service, const auto&) {
    for (const auto& port : items_of(service, "spec", "ports")) {
      auto protocol = text_of(port, "protocol");
      if (protocol == "UDP" || protocol == "SCTP")
        found(
            name_of(service),
            fmt::format("port {} is {}, which the mesh does not carry: it is not encrypted, and STRICT does "
                        "not close it",
                        number_of(port, "port"), protocol),
            fmt::format("close it by a NetworkPolicy where that matters: `kubectl get networkpolicies -n {}`",
                        ns_of(service)));
    }
  });
}

void headless(const Cluster& cluster, Found& found) {
  for_enrolled_services(cluster, [&](const Json& service, const auto&) {
    if (text_of(service, "spec", "clusterIP") == "None")
      found(name_of(service),
            "it is headless: clients choose pods by themselves; it is encrypted, and not balanced",
            fmt::format(
                "nothing has to be done; `kubectl get endpointslices -n {} -l kubernetes.io/service-name={}`",
                ns_of(service), text_of(service, "metadata", "name")));
  });
}

bool in_mesh(const Cluster& cluster, std::string_view ns) {
  const auto* object = cluster.object("namespaces", "", ns);
  return object != nullptr && mode_of(*object) == "ambient";
}

void external_name(const Cluster& cluster, Found& found) {
  for (const auto& service : cluster.facts.all("services")) {
    if (text_of(service, "spec", "type") == "ExternalName" && in_mesh(cluster, ns_of(service)))
      found(name_of(service),
            fmt::format("it stands for {}: outside of the mesh, so it is reached plainly",
                        text_of(service, "spec", "externalName")),
            "nothing has to be done if that server speaks TLS itself; " + edit(service, "service"));
  }
}

void service_without_pods(const Cluster& cluster, Found& found) {
  for (const auto& service : cluster.facts.all("services")) {
    const auto& selector = json_at(service, "spec", "selector");
    if (!selector.is_object() || selector.empty() || !in_mesh(cluster, ns_of(service))) continue;
    if (cluster.select(ns_of(service), selector).empty())
      found(name_of(service), fmt::format("its selector {} matches no pod", selector.dump()),
            fmt::format("compare with `kubectl get pods -n {} --show-labels`", ns_of(service)));
  }
}

struct Unread {
  const char* list;
  const char* what;
};
void say_unread(const Cluster& cluster, std::initializer_list<Unread> lists, Found& found) {
  for (const auto& [list, what] : lists) {
    for (const auto& object : cluster.facts.all(list))
      found(name_of(object), what, fmt::format("nothing here is in force; see `kubectl get {} -A`", list));
  }
}

void routes_not_read(const Cluster& cluster, Found& found) {
  say_unread(
      cluster,
      {{"virtualservices", "VirtualServices are not read in this version: its routes do nothing"},
       {"httproutes",
        "HTTPRoutes of the mesh are not read in this version; those of an ingress controller are its own"},
       {"serviceentries",
        "ServiceEntries are not read in this version: its hosts are as any outside of the cluster"},
       {"envoyfilters", "EnvoyFilters are not read: there is no Envoy"}},
      found);
}

void jwt_not_read(const Cluster& cluster, Found& found) {
  say_unread(cluster,
             {{"requestauthentications",
               "RequestAuthentications are not read in this version: no token is checked"}},
             found);
}

using enum Severity;
constexpr auto kAlways = When::always;
const Check kChecks[] = {
    {"NM1314",
     warning,
     kAlways,
     "The mesh's label has an unknown value",
     "ambient enrols, none opts out; anything else does nothing.",
     {"namespaces", "pods"},
     unknown_mode},
    {"NM1315",
     warning,
     kAlways,
     "A namespace asks for the mesh and for sidecars",
     "A pod with a sidecar is not enrolled. Decide for one.",
     {"namespaces"},
     injected_too},
    {"NM1316",
     warning,
     kAlways,
     "A waypoint is asked for",
     "There are no waypoints here: policies that count on one are not enforced.",
     {"namespaces", "services", "pods"},
     waypoint_wanted},
    {"NM1317",
     error,
     kAlways,
     "nodemesh's own namespace is in the mesh",
     "Agents need certificates before they can carry anything, and would have to carry their own request for "
     "them.",
     {"namespaces"},
     own_namespace_enrolled},
    {"NM1318",
     info,
     kAlways,
     "A Service's port has no name and no appProtocol",
     "It is carried as TCP. A name as http-web, or an appProtocol, says more.",
     {"services", "pods", "namespaces"},
     port_without_protocol},
    {"NM1319",
     info,
     kAlways,
     "A Service in the mesh has a port that is not TCP",
     "UDP and SCTP pass by the mesh.",
     {"services", "pods", "namespaces"},
     udp_port},
    {"NM1320",
     info,
     kAlways,
     "A Service in the mesh is headless",
     "Its clients dial pods; each connection is encrypted and goes where the client chose.",
     {"services", "pods", "namespaces"},
     headless},
    {"NM1321",
     info,
     kAlways,
     "An ExternalName in the mesh",
     "It leads outside of the mesh, plainly.",
     {"services", "namespaces"},
     external_name},
    {"NM1322",
     warning,
     kAlways,
     "A Service in the mesh selects no pod",
     "It has no endpoints.",
     {"services", "pods", "namespaces"},
     service_without_pods},
    {"NM1323",
     info,
     kAlways,
     "Routes that this version does not read",
     "VirtualService, HTTPRoute, ServiceEntry and EnvoyFilter come with a later version, or never.",
     {"virtualservices", "httproutes", "serviceentries", "envoyfilters"},
     routes_not_read},
    {"NM1324",
     warning,
     kAlways,
     "A RequestAuthentication is not read",
     "No token is checked in this version, so nothing may rely on it.",
     {"requestauthentications"},
     jwt_not_read},
};

}  // namespace

std::span<const Check> config_checks() {
  return kChecks;
}

}  // namespace nodemesh::ctl

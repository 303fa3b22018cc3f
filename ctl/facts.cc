#include "ctl/facts.h"

#include <algorithm>

#include <fmt/format.h>

#include "ctl/json_at.h"

namespace nodemesh::ctl {
namespace {

constexpr const char* kOwn = ".";   // nodemesh's namespace
constexpr const char* kRoot = "*";  // every one, for the ConfigMap `istio` of whichever is the root namespace

// What an installation creates; `namespaced` things in nodemesh's namespace.
struct Need {
  const char *group, *resource;
  bool namespaced;
};
constexpr Need kNeeds[] = {
    {"", "namespaces", false},
    {"apiextensions.k8s.io", "customresourcedefinitions", false},
    {"admissionregistration.k8s.io", "validatingadmissionpolicies", false},
    {"admissionregistration.k8s.io", "validatingadmissionpolicybindings", false},
    {"rbac.authorization.k8s.io", "clusterroles", false},
    {"rbac.authorization.k8s.io", "clusterrolebindings", false},
    {"rbac.authorization.k8s.io", "roles", true},
    {"rbac.authorization.k8s.io", "rolebindings", true},
    {"", "serviceaccounts", true},
    {"", "services", true},
    {"apps", "daemonsets", true},
    {"apps", "deployments", true},
    {"policy", "poddisruptionbudgets", true},
};

std::string path_of(const FactSource& source, const std::string& ns) {
  std::string_view version = source.api_version;
  std::string path =
      version.contains('/') ? fmt::format("/apis/{}", version) : fmt::format("/api/{}", version);
  std::string_view where = source.ns;
  if (where == kOwn) where = ns;
  if (!where.empty() && where != kRoot) path += fmt::format("/namespaces/{}", where);
  path += fmt::format("/{}", source.resource);
  if (*source.query != 0) path += fmt::format("?{}", source.query);
  return path;
}

// Kept where a check reads them; elsewhere they are half of an object.
bool wants_managed_fields(std::string_view list) {
  return list == "nodeleases" || list == "namespaces";
}

Listing read_list(ClusterApi& api, const FactSource& source, const std::string& ns) {
  auto path = path_of(source, ns);
  // The status tells what a list's error does not: whether the kind is served, and whether it may be read.
  auto probe = api.get(path + (path.contains('?') ? "&limit=1" : "?limit=1"));
  if (probe.not_found()) return {};
  if (probe.forbidden())
    return {.unread = fmt::format("no right to list {}", source.resource), .served = true};
  if (!probe.ok()) return {.unread = probe.error};
  auto items = api.list(path);
  if (!items) return {.unread = items.error().message, .served = true};
  Listing out{.items = std::move(*items), .served = true};
  for (auto& item : out.items) {
    item["kind"] = source.kind;
    item["apiVersion"] = source.api_version;
    auto meta = item.find("metadata");
    if (meta != item.end() && meta->is_object() && !wants_managed_fields(source.name))
      meta->erase("managedFields");
  }
  return out;
}

void read_rights(ClusterApi& api, Facts& facts) {
  for (const auto& need : kNeeds) {
    Json attributes = {{"verb", "create"}, {"group", need.group}, {"resource", need.resource}};
    if (need.namespaced) attributes["namespace"] = facts.ns;
    auto reply = api.call(kube::Verb::post, "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews",
                          {{"apiVersion", "authorization.k8s.io/v1"},
                           {"kind", "SelfSubjectAccessReview"},
                           {"spec", {{"resourceAttributes", attributes}}}});
    if (!reply.ok()) {
      facts.rights_unread = reply.error;
      return;
    }
    facts.rights.push_back(
        {"create", need.group, need.resource, "", flag_of(reply.body, "status", "allowed")});
  }
}

// managedFields name what each writer set: "f:data": {"f:ca-cert.pem": {}, …}.
void read_cacerts(ClusterApi& api, Facts& facts) {
  auto reply = api.get_metadata(fmt::format("/api/v1/namespaces/{}/secrets/cacerts", facts.ns));
  if (reply.not_found()) return;
  if (!reply.ok()) {
    facts.cacerts_unread = reply.forbidden() ? "no right to get Secret cacerts" : reply.error;
    return;
  }
  facts.cacerts_exists = true;
  for (const auto& entry : items_of(reply.body, "metadata", "managedFields")) {
    const auto& data = json_at(entry, "fieldsV1", "f:data");
    if (!data.is_object()) continue;
    for (const auto& [key, value] : data.items()) {
      if (key.starts_with("f:")) facts.cacerts_keys.push_back(key.substr(2));
    }
  }
  if (facts.cacerts_keys.empty())
    facts.cacerts_unread = "the API server does not say who wrote Secret cacerts";
}

}  // namespace

std::vector<FactSource> fact_sources() {
  constexpr const char* kAdmission = "admissionregistration.k8s.io/v1";
  return {
      {"nodes", "v1", "Node", "nodes"},
      {"namespaces", "v1", "Namespace", "namespaces"},
      {"pods", "v1", "Pod", "pods"},
      {"services", "v1", "Service", "services"},
      {"serviceaccounts", "v1", "ServiceAccount", "serviceaccounts"},
      {"configmaps", "v1", "ConfigMap", "configmaps", kOwn},
      {"meshconfig", "v1", "ConfigMap", "configmaps", kRoot, "fieldSelector=metadata.name%3Distio"},
      {"cilium", "v1", "ConfigMap", "configmaps", "kube-system",
       "fieldSelector=metadata.name%3Dcilium-config"},
      {"resourcequotas", "v1", "ResourceQuota", "resourcequotas", kOwn},
      {"daemonsets", "apps/v1", "DaemonSet", "daemonsets"},
      {"deployments", "apps/v1", "Deployment", "deployments", kOwn},
      {"leases", "coordination.k8s.io/v1", "Lease", "leases", kOwn},
      {"nodeleases", "coordination.k8s.io/v1", "Lease", "leases", "kube-node-lease"},
      {"runtimeclasses", "node.k8s.io/v1", "RuntimeClass", "runtimeclasses"},
      {"networkpolicies", "networking.k8s.io/v1", "NetworkPolicy", "networkpolicies"},
      {"ingresses", "networking.k8s.io/v1", "Ingress", "ingresses"},
      {"crds", "apiextensions.k8s.io/v1", "CustomResourceDefinition", "customresourcedefinitions"},
      {"apiservices", "apiregistration.k8s.io/v1", "APIService", "apiservices"},
      {"clusterrolebindings", "rbac.authorization.k8s.io/v1", "ClusterRoleBinding", "clusterrolebindings", "",
       "fieldSelector=metadata.name%3Dnodemesh-agent"},
      {"validatingadmissionpolicies", kAdmission, "ValidatingAdmissionPolicy", "validatingadmissionpolicies"},
      {"validatingadmissionpolicybindings", kAdmission, "ValidatingAdmissionPolicyBinding",
       "validatingadmissionpolicybindings"},
      {"validatingwebhooks", kAdmission, "ValidatingWebhookConfiguration", "validatingwebhookconfigurations"},
      {"mutatingwebhooks", kAdmission, "MutatingWebhookConfiguration", "mutatingwebhookconfigurations"},
      {"workloadslices", "nodemesh.dev/v1alpha1", "WorkloadSlice", "workloadslices"},
      {"peerauthentications", "security.istio.io/v1", "PeerAuthentication", "peerauthentications"},
      {"authorizationpolicies", "security.istio.io/v1", "AuthorizationPolicy", "authorizationpolicies"},
      {"destinationrules", "networking.istio.io/v1", "DestinationRule", "destinationrules"},
      {"requestauthentications", "security.istio.io/v1", "RequestAuthentication", "requestauthentications"},
      {"virtualservices", "networking.istio.io/v1", "VirtualService", "virtualservices"},
      {"serviceentries", "networking.istio.io/v1", "ServiceEntry", "serviceentries"},
      {"envoyfilters", "networking.istio.io/v1alpha3", "EnvoyFilter", "envoyfilters"},
      {"httproutes", "gateway.networking.k8s.io/v1", "HTTPRoute", "httproutes"},
      {"servicemonitors", "monitoring.coreos.com/v1", "ServiceMonitor", "servicemonitors"},
      {"podmonitors", "monitoring.coreos.com/v1", "PodMonitor", "podmonitors"},
      {"felixconfigurations", "crd.projectcalico.org/v1", "FelixConfiguration", "felixconfigurations"},
  };
}

Facts gather_facts(ClusterApi& api, const std::string& ns, const GatherOptions& options) {
  Facts facts{.ns = ns, .meshctl_version = NODEMESH_VERSION, .now = options.now};
  facts.server = api.get("/version").body;
  if (facts.server.is_null()) return facts;
  for (const auto& source : fact_sources()) facts.lists.emplace(source.name, read_list(api, source, ns));
  if (options.pre) read_rights(api, facts);
  if (!options.pre) read_cacerts(api, facts);
  if (!options.pre && options.ask_agents) options.ask_agents(facts);
  return facts;
}

}  // namespace nodemesh::ctl

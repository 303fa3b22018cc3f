// Policies: what agents refuse or do not serve, and what can match nothing. Where agents read an object too,
// their own reader is asked.
#include <algorithm>

#include <fmt/format.h>

#include "ctl/check.h"
#include "ctl/check_words.h"
#include "ctl/json_at.h"

namespace nodemesh::ctl {
namespace {

std::string edit(const Json& object, std::string_view resource) {
  return fmt::format("kubectl edit {} {} -n {}", resource, text_of(object, "metadata", "name"),
                     ns_of(object));
}
bool has_selector(const Json& policy) {
  const auto& labels = json_at(policy, "spec", "selector", "matchLabels");
  return labels.is_object() && !labels.empty();
}

// The pods that a policy with a selector is for: those of its namespace, or of all in the root namespace.
std::vector<const Json*> selected(const Cluster& cluster, const Json& policy) {
  auto ns = ns_of(policy);
  const auto& labels = json_at(policy, "spec", "selector", "matchLabels");
  return cluster.select(ns == cluster.root_namespace() ? "" : ns,
                        labels.is_object() ? labels : Json::object());
}

void say_problems(const Cluster& cluster, kube::Severity severity, Found& found) {
  for (const auto& status : cluster.statuses) {
    if (status.kind != "PeerAuthentication" && status.kind != "AuthorizationPolicy" &&
        status.kind != "DestinationRule" && status.kind != "NetworkPolicy")
      continue;
    for (const auto& problem : status.problems) {
      if (problem.severity != severity) continue;
      found(fmt::format("{} {}/{}", status.kind, status.ns, status.name),
            (problem.field.empty() ? "" : problem.field + ": ") + problem.message,
            fmt::format("{}; `kubectl edit {} {} -n {}`", problem.fix, status.kind, status.name, status.ns));
    }
  }
}

void refused(const Cluster& cluster, Found& found) {
  say_problems(cluster, kube::Severity::error, found);
}
void not_served(const Cluster& cluster, Found& found) {
  say_problems(cluster, kube::Severity::warning, found);
}

void selector_without_pods(const Cluster& cluster, const char* list, Found& found) {
  for (const auto& policy : cluster.facts.all(list)) {
    if (has_selector(policy) && selected(cluster, policy).empty())
      found(name_of(policy),
            fmt::format("its selector {} matches no pod",
                        json_at(policy, "spec", "selector", "matchLabels").dump()),
            fmt::format("compare with `kubectl get pods -n {} --show-labels`", ns_of(policy)));
  }
}
void peer_selector(const Cluster& cluster, Found& found) {
  selector_without_pods(cluster, "peerauthentications", found);
}
void authorization_selector(const Cluster& cluster, Found& found) {
  selector_without_pods(cluster, "authorizationpolicies", found);
}

void peer_ports(const Cluster& cluster, Found& found) {
  for (const auto& policy : cluster.facts.all("peerauthentications")) {
    const auto& ports = json_at(policy, "spec", "portLevelMtls");
    if (!ports.is_object()) continue;
    auto pods = selected(cluster, policy);
    for (const auto& [port, mode] : ports.items()) {
      bool has = pods.empty();  // NM1303 says that
      bool any_named = false;
      for (const auto* pod : pods) {
        for (const auto& container : items_of(*pod, "spec", "containers")) {
          for (const auto& one : items_of(container, "ports")) {
            any_named = true;
            has = has || std::to_string(number_of(one, "containerPort")) == port;
          }
        }
      }
      if (has || !any_named) continue;
      found(name_of(policy),
            fmt::format("portLevelMtls names port {}, which no container of its pods has; it means the pod's "
                        "port, not the Service's",
                        port),
            edit(policy, "peerauthentication"));
    }
  }
}

// Those without a selector; agents take the oldest.
void two_for_all(const Cluster& cluster, bool mesh, Found& found) {
  std::map<std::string, std::vector<const Json*>> by_namespace;
  for (const auto& policy : cluster.facts.all("peerauthentications")) {
    if (!has_selector(policy)) by_namespace[ns_of(policy)].push_back(&policy);
  }
  for (const auto& [ns, policies] : by_namespace) {
    if (policies.size() < 2 || (ns == cluster.root_namespace()) != mesh) continue;
    std::vector<std::string> names;
    for (const auto* policy : policies) names.push_back(text_of(*policy, "metadata", "name"));
    found("Namespace " + ns,
          fmt::format("PeerAuthentications {} are both for {}; the oldest counts, the others do nothing",
                      fmt::join(names, ", "), mesh ? "the whole mesh" : "the whole namespace"),
          fmt::format("kubectl delete peerauthentication {} -n {}", names.back(), ns));
  }
}
void two_mesh_wide(const Cluster& cluster, Found& found) {
  two_for_all(cluster, true, found);
}
void two_namespace_wide(const Cluster& cluster, Found& found) {
  two_for_all(cluster, false, found);
}

void target_absent(const Cluster& cluster, Found& found) {
  for (const auto& policy : cluster.facts.all("authorizationpolicies")) {
    auto targets = items_of(policy, "spec", "targetRefs");
    if (json_at(policy, "spec", "targetRef").is_object())
      targets.push_back(json_at(policy, "spec", "targetRef"));
    for (const auto& target : targets) {
      auto name = text_of(target, "name");
      if (text_of(target, "kind") == "Service" && cluster.object("services", ns_of(policy), name) == nullptr)
        found(name_of(policy),
              fmt::format("it targets Service {}, which does not exist in {}: it protects nothing", name,
                          ns_of(policy)),
              fmt::format("kubectl get services -n {}", ns_of(policy)));
    }
  }
}

// Every text at rules[].from[].source.<field>, and in its negation.
template <class Use>
void for_sources(const Json& policy, std::string_view field, std::string_view negated, Use&& use) {
  for (const auto& rule : items_of(policy, "spec", "rules")) {
    for (const auto& from : items_of(rule, "from")) {
      for (auto key : {field, negated}) {
        for (const auto& value : items_of(from, "source", key)) {
          if (value.is_string()) use(value.get_ref<const std::string&>());
        }
      }
    }
  }
}

// "td/ns/x/sa/y" without wildcards; else empty parts.
struct Principal {
  std::string domain, ns, account;
};
std::optional<Principal> parse_principal(const std::string& text) {
  if (text.contains('*')) return std::nullopt;
  auto ns = text.find("/ns/");
  auto account = ns == text.npos ? text.npos : text.find("/sa/", ns + 4);
  if (account == text.npos) return std::nullopt;
  return Principal{text.substr(0, ns), text.substr(ns + 4, account - ns - 4), text.substr(account + 4)};
}

template <class Use>
void for_principals(const Cluster& cluster, Use&& use) {
  for (const auto& policy : cluster.facts.all("authorizationpolicies")) {
    for_sources(policy, "principals", "notPrincipals", [&](const std::string& text) {
      if (auto principal = parse_principal(text)) use(policy, text, *principal);
    });
  }
}

void foreign_domain(const Cluster& cluster, Found& found) {
  const auto& mesh = cluster.snapshot->mesh();
  for_principals(cluster, [&](const Json& policy, const std::string& text, const Principal& principal) {
    bool ours =
        principal.domain == mesh.trust_domain || principal.domain == "cluster.local" ||
        std::ranges::find(mesh.trust_domain_aliases, principal.domain) != mesh.trust_domain_aliases.end();
    if (!ours)
      found(name_of(policy),
            fmt::format("principal {} is of trust domain {}, and this mesh's is {}: nobody here has it", text,
                        principal.domain, mesh.trust_domain),
            edit(policy, "authorizationpolicy"));
  });
}

bool has_namespace(const Cluster& cluster, std::string_view name) {
  return cluster.object("namespaces", "", name) != nullptr;
}

void namespace_absent(const Cluster& cluster, Found& found) {
  for_principals(cluster, [&](const Json& policy, const std::string& text, const Principal& principal) {
    if (!has_namespace(cluster, principal.ns))
      found(name_of(policy),
            fmt::format("principal {} is of namespace {}, which does not exist", text, principal.ns),
            "kubectl get namespaces");
  });
  for (const auto& policy : cluster.facts.all("authorizationpolicies")) {
    for_sources(policy, "namespaces", "notNamespaces", [&](const std::string& text) {
      if (!text.contains('*') && !has_namespace(cluster, text))
        found(name_of(policy), fmt::format("it names namespace {}, which does not exist", text),
              "kubectl get namespaces");
    });
  }
}

void account_absent(const Cluster& cluster, Found& found) {
  for_principals(cluster, [&](const Json& policy, const std::string& text, const Principal& principal) {
    if (has_namespace(cluster, principal.ns) &&
        cluster.object("serviceaccounts", principal.ns, principal.account) == nullptr)
      found(name_of(policy), fmt::format("principal {} names a service account that does not exist", text),
            fmt::format("kubectl get serviceaccounts -n {}", principal.ns));
  });
}

void allows_nobody(const Cluster& cluster, Found& found) {
  for (const auto& policy : cluster.facts.all("authorizationpolicies")) {
    auto action = text_of(policy, "spec", "action");
    if ((action.empty() || action == "ALLOW") && items_of(policy, "spec", "rules").empty())
      found(name_of(policy),
            "it has no rules, so it allows nobody: all it applies to is closed but for what other policies "
            "allow",
            "if that is meant, nothing has to be done; " + edit(policy, "authorizationpolicy"));
  }
}

// "web" → web.ns.svc.cluster.local, as DestinationRule.host.
bool host_exists(const Cluster& cluster, const Json& rule) {
  auto host = text_of(rule, "spec", "host");
  if (host.contains('*') || host.empty()) return true;
  auto dot = host.find('.');
  auto name = host.substr(0, dot);
  auto rest = dot == host.npos ? ns_of(rule) : host.substr(dot + 1);
  // Hosts of other domains are none of the cluster's.
  if (dot != host.npos && rest.contains('.') && !rest.contains(".svc")) return true;
  return cluster.object("services", rest.substr(0, rest.find('.')), name) != nullptr;
}

void rule_without_service(const Cluster& cluster, Found& found) {
  for (const auto& rule : cluster.facts.all("destinationrules")) {
    if (!host_exists(cluster, rule))
      found(name_of(rule), fmt::format("there is no Service with its host {}", text_of(rule, "spec", "host")),
            "kubectl get services -A");
  }
}

using enum Severity;
constexpr auto kAlways = When::always;
const Check kChecks[] = {
    {"NM1301",
     error,
     kAlways,
     "A policy is refused",
     "Agents refuse what they cannot read; the last good version stays in force, or nothing does.",
     {"peerauthentications", "authorizationpolicies", "destinationrules", "networkpolicies"},
     refused},
    {"NM1302",
     warning,
     kAlways,
     "A policy has a field that does nothing here",
     "A field of HTTP on a policy that is enforced on connections, or one that this version does not serve.",
     {"peerauthentications", "authorizationpolicies", "destinationrules", "networkpolicies", "namespaces",
      "pods"},
     not_served},
    {"NM1303",
     warning,
     kAlways,
     "A PeerAuthentication selects no pod",
     "It changes nothing. A selector is for pods of its own namespace.",
     {"peerauthentications", "pods"},
     peer_selector},
    {"NM1304",
     warning,
     kAlways,
     "A PeerAuthentication names a port that its pods do not have",
     "The port is the container's, not the Service's.",
     {"peerauthentications", "pods"},
     peer_ports},
    {"NM1305",
     warning,
     kAlways,
     "Two PeerAuthentications are for the whole mesh",
     "The oldest counts.",
     {"peerauthentications"},
     two_mesh_wide},
    {"NM1306",
     warning,
     kAlways,
     "Two PeerAuthentications are for one namespace",
     "The oldest counts.",
     {"peerauthentications"},
     two_namespace_wide},
    {"NM1307",
     warning,
     kAlways,
     "An AuthorizationPolicy selects no pod",
     "It protects nothing.",
     {"authorizationpolicies", "pods"},
     authorization_selector},
    {"NM1308",
     warning,
     kAlways,
     "An AuthorizationPolicy targets a Service that does not exist",
     "It protects nothing.",
     {"authorizationpolicies", "services"},
     target_absent},
    {"NM1309",
     warning,
     kAlways,
     "A principal is of another trust domain",
     "Nobody in this mesh has it. Write cluster.local, which stands for the mesh's own.",
     {"authorizationpolicies"},
     foreign_domain},
    {"NM1310",
     warning,
     kAlways,
     "A policy names a namespace that does not exist",
     "An ALLOW of it allows nobody, a DENY of it denies nobody.",
     {"authorizationpolicies", "namespaces"},
     namespace_absent},
    {"NM1311",
     warning,
     kAlways,
     "A principal's service account does not exist",
     "Nobody can have that identity until it does.",
     {"authorizationpolicies", "namespaces", "serviceaccounts"},
     account_absent},
    {"NM1312",
     info,
     kAlways,
     "An AuthorizationPolicy allows nobody",
     "The usual way to close a namespace; surprising if it was not meant.",
     {"authorizationpolicies"},
     allows_nobody},
    {"NM1313",
     warning,
     kAlways,
     "A DestinationRule's host is no Service",
     "It balances nothing.",
     {"destinationrules", "services"},
     rule_without_service},
};

}  // namespace

std::span<const Check> policy_checks() {
  return kChecks;
}

}  // namespace nodemesh::ctl

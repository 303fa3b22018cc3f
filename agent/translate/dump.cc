#include "translate/dump.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <tuple>

namespace nodemesh::translate {
namespace {

using nlohmann::json;

// Sets `key` unless the value says nothing.
void put(json& out, const char* key, const std::string& value) {
  if (!value.empty()) out[key] = value;
}
void put(json& out, const char* key, const Text& value) {
  put(out, key, value.str());
}
void put(json& out, const char* key, bool value) {
  if (value) out[key] = true;
}
void put(json& out, const char* key, json value) {
  if (!value.empty()) out[key] = std::move(value);
}

template <class Items, class Convert>
json list(const Items& items, Convert convert) {
  json out = json::array();
  for (const auto& item : items) out.push_back(convert(item));
  return out;
}

auto as_text = [](const auto& value) { return value.to_string(); };

json condition_json(const model::Condition& condition) {
  json values = list(condition.strings, as_text);
  for (const auto& cidr : condition.cidrs) values.push_back(cidr.to_string());
  for (auto port : condition.ports) values.push_back(port);
  return {{std::string(condition.negated ? "not " : "") + std::string(attribute_name(condition.attribute)),
           std::move(values)}};
}

json rule_json(const model::Rule& rule) {
  json out = {{"index", rule.index}};
  out["all"] = list(rule.clauses, [](const model::Clause& clause) {
    return json{{"any", list(clause.alternatives, [](const model::Alternative& alternative) {
                   return list(alternative.conditions, condition_json);
                 })}};
  });
  put(out, "lostHttpFields", rule.lost_http_fields);
  return out;
}

json applied_json(const model::AppliedPolicy& applied) {
  const auto& policy = *applied.policy;
  json out = {{"origin", to_json(policy.origin)}, {"action", action_name(policy.action)}};
  put(out, "dryRun", policy.dry_run);
  put(out, "ports", json(applied.ports));
  out["rules"] = list(policy.rules, rule_json);
  return out;
}

json mtls_json(const model::MtlsRule& mtls) {
  json out = {{"mode", mtls_mode_name(mtls.mode)}};
  if (!mtls.origin.kind.empty()) out["origin"] = to_json(mtls.origin);
  return out;
}

json network_json(const model::NetworkPolicies& network) {
  auto names = [](const auto& policies) {
    return list(policies, [](const auto& policy) { return policy->origin.ns + "/" + policy->origin.name; });
  };
  json out = json::object();
  put(out, "ingress", names(network.ingress));
  put(out, "egress", names(network.egress));
  return out;
}

json endpoint_json(const model::Endpoint& endpoint) {
  json out = {{"address", endpoint.target().to_string()}};
  if (endpoint.workload) out["workload"] = endpoint.workload->ns + "/" + endpoint.workload->name;
  if (!endpoint.ready) out["ready"] = false;
  if (!endpoint.serving) out["serving"] = false;
  put(out, "terminating", endpoint.terminating);
  put(out, "node", endpoint.node);
  put(out, "zone", endpoint.zone);
  return out;
}

json port_json(const model::ServicePort& port) {
  json out = {{"port", port.port},
              {"protocol", protocol_name(port.protocol)},
              {"loadBalancer", lb_policy_name(port.lb)}};
  put(out, "name", port.name);
  if (!port.lb_origin.kind.empty()) out["loadBalancerOrigin"] = to_json(port.lb_origin);
  std::span all(port.endpoints);
  size_t usable = port.usable_v4 + port.usable_v6;
  out["endpoints"] = list(all.subspan(0, usable), endpoint_json);
  put(out, "unusableEndpoints", list(all.subspan(usable), endpoint_json));
  return out;
}

json peers_json(const model::PeerRules& peers) {
  json out = {{"unknown", peers.unknown == model::UnknownPeer::hold ? "hold" : "plaintext"}};
  put(out, "services", list(peers.services, as_text));
  put(out, "plainRanges", list(peers.plain_ranges, as_text));
  put(out, "nodeAddresses", list(peers.node_addresses, as_text));
  return out;
}

json mesh_json(const model::MeshSettings& mesh) {
  json out = {{"trustDomain", mesh.trust_domain}, {"rootNamespace", mesh.root_namespace}};
  put(out, "trustDomainAliases", json(mesh.trust_domain_aliases));
  put(out, "clusterCidrs", list(mesh.cluster_cidrs, as_text));
  if (!mesh.peers.everyone_known) out["peers"] = peers_json(mesh.peers);
  if (mesh.access_log.file.empty()) return out;
  out["accessLog"] = {{"file", mesh.access_log.file}, {"encoding", mesh.access_log.json ? "JSON" : "TEXT"}};
  return out;
}

json problem_json(const kube::Problem& problem) {
  json out = {{"severity", problem.severity == kube::Severity::error ? "error" : "warning"},
              {"message", problem.message}};
  put(out, "file", problem.file);
  put(out, "field", problem.field);
  put(out, "fix", problem.fix);
  if (problem.line) out["line"] = problem.line;
  if (problem.column) out["column"] = problem.column;
  return out;
}

}  // namespace

json to_json(const model::Origin& origin) {
  json out = {{"kind", origin.kind}, {"name", origin.name}};
  put(out, "namespace", origin.ns);
  put(out, "section", origin.section);
  put(out, "file", origin.file);
  if (origin.line) out["line"] = origin.line;
  return out;
}

json to_json(const model::WorkloadPolicy& policy) {
  json out = {{"mtls", mtls_json(policy.mtls)}};
  for (const auto& [port, rule] : policy.port_mtls) out["portMtls"][std::to_string(port)] = mtls_json(rule);
  put(out, "authorization", list(policy.policies, applied_json));
  return out;
}

json to_json(const model::Workload& workload) {
  json out = {{"namespace", workload.ns},
              {"name", workload.name},
              {"origin", to_json(workload.origin)},
              {"uid", workload.uid},
              {"identity", workload.identity},
              {"serviceAccount", workload.service_account},
              {"mesh", mesh_name(workload.mesh)},
              {"workloadName", workload.workload_name},
              {"workloadType", workload.workload_type},
              {"app", workload.app},
              {"version", workload.version},
              {"canonicalName", workload.canonical_name},
              {"canonicalRevision", workload.canonical_revision},
              {"addresses", list(workload.addresses, as_text)}};
  if (workload.policy) out["policy"] = to_json(*workload.policy);
  if (workload.network) out["networkPolicies"] = network_json(*workload.network);
  put(out, "node", workload.node);
  put(out, "region", workload.region);
  put(out, "zone", workload.zone);
  put(out, "labels", json(*workload.labels));
  put(out, "namedPorts", json(workload.named_ports));
  put(out, "probePorts", json(workload.probe_ports));
  put(out, "netns", workload.netns);
  put(out, "enrolled", workload.enrolled);
  put(out, "hostNetwork", workload.host_network);
  return out;
}

json to_json(const model::Service& service) {
  json out = {{"namespace", service.ns},
              {"name", service.name},
              {"host", service.host},
              {"origin", to_json(service.origin)}};
  put(out, "vips", list(service.vips, as_text));
  put(out, "headless", service.headless);
  put(out, "externalName", service.external_name);
  put(out, "publishNotReadyAddresses", service.publish_not_ready);
  put(out, "localOnly", service.local_only);
  if (service.client_ip_affinity) out["clientIpAffinitySeconds"] = service.client_ip_affinity->count();
  put(out, "ports", list(service.ports, port_json));
  return out;
}

json to_json(const model::Snapshot& snapshot) {
  json out = {{"mesh", mesh_json(snapshot.mesh())}};
  put(out, "node", snapshot.node());
  auto workloads = snapshot.workloads();
  std::ranges::sort(workloads, [](const auto& a, const auto& b) {
    return std::tie(a->ns, a->name, a->origin.name) < std::tie(b->ns, b->name, b->origin.name);
  });
  out["workloads"] = list(workloads, [](const auto& workload) { return to_json(*workload); });
  out["services"] = list(snapshot.services(), [](const auto& service) { return to_json(*service); });
  return out;
}

json to_json(const model::Verdict& verdict) {
  json out = {{"allow", verdict.allow}};
  if (verdict.reason != Reason::NONE) out["reason"] = reason_name(verdict.reason);
  if (verdict.origin) out["origin"] = to_json(*verdict.origin);
  if (verdict.rule >= 0) out["rule"] = verdict.rule;
  put(out, "dryRunDenies", verdict.dry_run_denies);
  for (const auto& match : verdict.dry_run) {
    out["dryRun"].push_back({{"origin", to_json(match.policy->origin)},
                             {"action", action_name(match.policy->action)},
                             {"rule", match.rule}});
  }
  return out;
}

json to_json(const std::vector<kube::Status>& statuses) {
  return list(statuses, [](const kube::Status& status) {
    json out = {{"file", status.file}, {"state", kube::state_name(status.state)}};
    put(out, "kind", status.kind);
    put(out, "namespace", status.ns);
    put(out, "name", status.name);
    if (status.line) out["line"] = status.line;
    put(out, "problems", list(status.problems, problem_json));
    return out;
  });
}

}  // namespace nodemesh::translate

#include "proxy/decide.h"

namespace nodemesh::proxy {
namespace {

// Plaintext is for those of whom it is known that they are outside.
OutboundDecision transport_to(const model::Snapshot& snapshot, OutboundDecision decision) {
  const auto& workload = decision.workload;
  switch (workload != nullptr ? workload->mesh : snapshot.mesh_of_stranger(decision.target.ip)) {
    case model::Mesh::none:
      decision.transport = Transport::passthrough;
      break;
    case model::Mesh::unknown:
      decision.transport = Transport::unknown;
      break;
    case model::Mesh::hbone:
      decision.transport = workload->node == snapshot.node() ? Transport::same_node : Transport::hbone;
  }
  return decision;
}

std::string name_of(const model::Origin& origin) {
  return origin.ns + "/" + origin.name;
}

}  // namespace

Result<OutboundDecision> decide_outbound(const model::Snapshot& snapshot, const Destination& destination,
                                         const Addr& client, upstream::Balancer& balancer) {
  OutboundDecision decision{.target = destination.dialled,
                            .workload = destination.workload,
                            .service = destination.service,
                            .port = destination.port};
  if (destination.port == nullptr) return transport_to(snapshot, std::move(decision));
  decision.endpoint = balancer.pick(*destination.service, *destination.port, destination.dialled.ip, client);
  if (decision.endpoint == nullptr) {
    return fail(Reason::NO_ENDPOINTS, "Service " + destination.service->ns + "/" + destination.service->name +
                                          " port " + std::to_string(destination.port->port) +
                                          " has no endpoint that may serve");
  }
  decision.target = decision.endpoint->target();
  decision.workload = decision.endpoint->workload;
  return transport_to(snapshot, std::move(decision));
}

Admission admit(const model::Workload& server, const model::PeerFacts& facts) {
  Admission admission;
  if (server.policy == nullptr) {
    return {false, Reason::POLICY_UNSUPPORTED, "no policy is known for " + server.ns + "/" + server.name, ""};
  }
  model::Verdict verdict = model::authorize(*server.policy, facts);
  admission.allow = verdict.allow;
  admission.reason = verdict.reason;
  admission.dry_run = std::move(verdict.dry_run);
  if (verdict.origin != nullptr) admission.policy = name_of(*verdict.origin);
  if (!verdict.allow) {
    admission.detail = std::string(reason_text(verdict.reason));
    if (verdict.origin != nullptr) admission.detail += ": " + verdict.origin->kind + " " + admission.policy;
    if (verdict.rule >= 0) admission.detail += " rule " + std::to_string(verdict.rule);
  }
  return admission;
}

Result<> permit_egress(const model::Workload& client, const OutboundDecision& decision) {
  if (client.network == nullptr || decision.transport == Transport::passthrough) return {};
  const auto* server = decision.workload.get();
  const auto* policy =
      model::denied_by(client.network->egress, {server, decision.target.ip, server, decision.target.port});
  if (policy == nullptr) return {};
  return fail(Reason::POLICY_NO_ALLOW, "egress to " + decision.target.to_string() +
                                           " is not allowed: NetworkPolicy " + name_of(policy->origin));
}

Result<> permit_ingress(const model::Workload& server, const model::Workload* client, const Addr& source,
                        uint16_t port) {
  if (server.network == nullptr) return {};
  const auto* policy = model::denied_by(server.network->ingress, {client, source, &server, port});
  if (policy == nullptr) return {};
  return fail(Reason::POLICY_NO_ALLOW, "ingress from " + source.to_string() + " to port " +
                                           std::to_string(port) + " is not allowed: NetworkPolicy " +
                                           name_of(policy->origin));
}

Result<SockAddr> parse_connect_authority(std::string_view authority, const Addr& local) {
  auto target = SockAddr::parse(authority);
  if (!target || target->port == 0) return fail(Reason::BAD_AUTHORITY, "authority is not ip:port");
  if (target->ip != local)
    return fail(Reason::WRONG_DESTINATION, "authority names another address than this pod's");
  if (target->port == NM_HBONE_PORT) return fail(Reason::LOOP, "authority names the HBONE port");
  return *target;
}

}  // namespace nodemesh::proxy

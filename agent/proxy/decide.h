// The third step: whether a connection may be, and by which way. Pure functions of the snapshot and of what
// identify found, so that tests and `meshctl why` call what serves traffic; no state but the balancer's
// choice.
#pragma once

#include <string>
#include <vector>

#include "model/authorize.h"
#include "model/snapshot.h"
#include "proxy/identify.h"
#include "upstream/balancer.h"

namespace nodemesh::proxy {

enum class Transport : uint8_t {
  same_node,    // shortcut: a socket in the server pod's namespace
  hbone,        // mTLS to podIP:15008
  passthrough,  // plain TCP to what is known to be outside the mesh
  unknown,  // nothing is known of it yet: HBONE to whoever proves to be of `workload`'s namespace, or wait
};

struct OutboundDecision {
  Transport transport = Transport::passthrough;
  SockAddr target;                          // of the endpoint
  model::Shared<model::Workload> workload;  // at `target`; null outside the cluster
  model::Shared<model::Service> service;
  const model::ServicePort* port = nullptr;
  const model::Endpoint* endpoint = nullptr;  // picked among several; null when there was no choice
};

// For a client on `snapshot.node()`. `client` is its address, for affinity. Errors: NO_ENDPOINTS.
Result<OutboundDecision> decide_outbound(const model::Snapshot& snapshot, const Destination& destination,
                                         const Addr& client, upstream::Balancer& balancer);

// At the server's node: the workload's policies on what is known of the peer. The text names the policy.
struct Admission {
  bool allow = true;
  Reason reason = Reason::NONE;
  std::string detail;                       // empty when allowed
  std::string policy;                       // "ns/name" of what decided; empty when nothing did
  std::vector<model::DryRunMatch> dry_run;  // policies in dry-run mode that matched
};
Admission admit(const model::Workload& server, const model::PeerFacts& facts);

// Kubernetes NetworkPolicies, at the client's node and at the server's. A CNI sees HBONE's port instead of
// the connection's, and the same-node shortcut not at all; plaintext it sees itself, so that is left to it.
// The error, POLICY_NO_ALLOW, names the policy.
Result<> permit_egress(const model::Workload& client, const OutboundDecision& decision);
// `client` may be null: no pod is known at `source`.
Result<> permit_ingress(const model::Workload& server, const model::Workload* client, const Addr& source,
                        uint16_t port);

// The authority of a CONNECT (RFC 9110 9.3.6): must be ip:port with the pod's own address `local`, and no
// port of the mesh itself. Errors: BAD_AUTHORITY, WRONG_DESTINATION, LOOP.
Result<SockAddr> parse_connect_authority(std::string_view authority, const Addr& local);

}  // namespace nodemesh::proxy

// A pod as the mesh sees it: identity, addresses, labels for telemetry, and the policy it demands as a
// server. An immutable value, shared by snapshots and sessions; any thread.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "base/addr.h"
#include "model/network.h"
#include "model/origin.h"
#include "model/policy.h"
#include "model/shared.h"

namespace nodemesh::model {

// How to reach a workload.
enum class Mesh : uint8_t {
  none,     // known to be outside the mesh: plain TCP
  hbone,    // mTLS to podIP:15008
  unknown,  // not known; never sent plaintext
};
std::string_view mesh_name(Mesh mesh);

inline constexpr size_t kMaxUid = 63;

struct Workload {
  Origin origin;
  std::string uid;  // the pod's; "ns/name" where the object has none; at most kMaxUid bytes, none below 0x20
  std::string ns;
  std::string name;
  std::string service_account;
  std::string identity;  // "spiffe://td/ns/x/sa/y"
  std::string node;
  std::string region;
  std::string zone;
  std::vector<Addr> addresses;
  std::map<std::string, std::string> labels;
  // Telemetry, as Istio derives them; never empty.
  std::string workload_name;  // of the owner, e.g. the Deployment
  std::string workload_type;  // deployment, statefulset, daemonset, job, cronjob, replicaset or pod
  std::string app;            // "unknown" without a label
  std::string version;        // "unknown" without a label
  std::string canonical_name;
  std::string canonical_revision;               // "latest" without a label
  std::map<std::string, uint16_t> named_ports;  // TCP container ports by name
  std::vector<uint16_t> probe_ports;            // of kubelet's probes and hooks, sorted
  std::string netns;  // path from annotation nodemesh.dev/netns; empty: found by its processes
  Mesh mesh = Mesh::none;
  bool enrolled = false;            // captured by its node's agent
  bool host_network = false;        // shares the node's addresses, so it is never found by address
  Shared<WorkloadPolicy> policy;    // null: of another node, so that nobody is admitted here
  Shared<NetworkPolicies> network;  // null: none selects it, or of another node

  bool operator==(const Workload&) const = default;
};

// "spiffe://td/ns/x/sa/y".
std::string spiffe_id(std::string_view trust_domain, std::string_view ns, std::string_view service_account);

}  // namespace nodemesh::model

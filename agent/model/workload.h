// A pod as the mesh sees it: identity, addresses, labels for telemetry, and the policy it demands as a
// server. An immutable value, shared by snapshots and sessions; any thread.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "base/addr.h"
#include "base/text.h"
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

// Labels of an object, shared by the pods of one owner. Never null.
class Labels {
 public:
  using Map = std::map<std::string, std::string>;
  Labels() = default;
  Labels(Map labels) : held_(labels.empty() ? nullptr : std::make_shared<const Map>(std::move(labels))) {}
  Labels(std::shared_ptr<const Map> labels) : held_(std::move(labels)) {}
  Labels(std::initializer_list<Map::value_type> labels) : Labels(Map(labels)) {}

  const Map& operator*() const {
    static const Map kNone;
    return held_ ? *held_ : kNone;
  }
  const Map* operator->() const { return &**this; }
  operator const Map&() const { return **this; }
  friend bool operator==(const Labels& a, const Labels& b) { return a.held_ == b.held_ || *a == *b; }

 private:
  std::shared_ptr<const Map> held_;
};

struct Workload {
  Origin origin;
  Text uid;  // the pod's; "ns/name" where the object has none; at most kMaxUid bytes, none below 0x20
  Text ns;
  Text name;
  Text service_account;
  Text identity;  // "spiffe://td/ns/x/sa/y"
  Text node;
  Text region;
  Text zone;
  std::vector<Addr> addresses;
  Labels labels;
  // Telemetry, as Istio derives them; never empty.
  Text workload_name;  // of the owner, e.g. the Deployment
  Text workload_type;  // deployment, statefulset, daemonset, job, cronjob, replicaset or pod
  Text app;            // "unknown" without a label
  Text version;        // "unknown" without a label
  Text canonical_name;
  Text canonical_revision;                      // "latest" without a label
  std::map<std::string, uint16_t> named_ports;  // TCP container ports by name
  std::vector<uint16_t> probe_ports;            // of kubelet's probes and hooks, sorted
  Text netns;  // path from annotation nodemesh.dev/netns; empty: found by its processes
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

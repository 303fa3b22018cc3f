// Kubernetes NetworkPolicies as they bear on one workload. A CNI enforces them on packets; inside a tunnel,
// or on the same-node shortcut, it does not see the connection's own port, so we ask them too: they may deny
// what everything else allows, never allow what something denies. Immutable values; pure; any thread.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/addr.h"
#include "model/origin.h"
#include "model/shared.h"

namespace nodemesh::model {

// metav1.LabelSelectorRequirement; matchLabels are `in` with one value.
struct LabelRequirement {
  enum class Operator : uint8_t { in, not_in, exists, absent };
  std::string key;
  Operator op = Operator::in;
  std::vector<std::string> values;

  bool operator==(const LabelRequirement&) const = default;
};
using LabelSelector = std::vector<LabelRequirement>;  // all must hold; none: everything
bool selects(const LabelSelector& selector, const std::map<std::string, std::string>& labels);

struct NetworkPeer {
  std::optional<Cidr> block;  // else pods:
  std::vector<Cidr> except;
  std::vector<std::string> namespaces;  // sorted; the namespaceSelector, resolved
  LabelSelector pods;

  bool operator==(const NetworkPeer&) const = default;
};

struct NetworkPort {
  uint16_t first = 1, last = 65535;
  std::string name;  // of the server's container port; empty: the numbers count

  bool operator==(const NetworkPort&) const = default;
};

struct NetworkRule {
  std::optional<std::vector<NetworkPeer>> peers;  // none: anybody
  std::optional<std::vector<NetworkPort>> ports;  // none: any

  bool operator==(const NetworkRule&) const = default;
};

// One direction of one NetworkPolicy.
struct NetworkPolicy {
  Origin origin;
  std::vector<NetworkRule> rules;

  bool operator==(const NetworkPolicy&) const = default;
};

// Those that select a workload; a direction without any is open.
struct NetworkPolicies {
  std::vector<Shared<NetworkPolicy>> ingress, egress;

  bool operator==(const NetworkPolicies&) const = default;
};

struct Workload;

// What a NetworkPolicy is asked about.
struct NetworkFlow {
  const Workload* peer = nullptr;  // the other end, if it is a known pod
  Addr peer_address;
  const Workload* server = nullptr;  // whose port it is, if known
  uint16_t port = 0;                 // of the server's pod, not of a Service
};

// Null when allowed, else the first of the policies, none of which allows it.
const NetworkPolicy* denied_by(std::span<const Shared<NetworkPolicy>> policies, const NetworkFlow& flow);

}  // namespace nodemesh::model

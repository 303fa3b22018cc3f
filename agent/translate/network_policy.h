// Kubernetes' NetworkPolicy, read and compiled to model::NetworkPolicies. Immutable values; control thread.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "kube/store.h"
#include "model/network.h"
#include "translate/istio.h"

namespace nodemesh::translate {

struct NetworkPolicySpec : kube::Decoded {
  struct Peer {
    std::optional<Cidr> block;
    std::vector<Cidr> except;
    std::optional<model::LabelSelector> namespaces;  // none: the policy's own
    model::LabelSelector pods;
  };
  struct Rule {
    std::optional<std::vector<Peer>> peers;
    std::optional<std::vector<model::NetworkPort>> ports;
  };
  model::LabelSelector pods;
  bool for_ingress = true, for_egress = false;
  std::vector<Rule> ingress, egress;
};

std::shared_ptr<const kube::Decoded> read_network_policy(const kube::Object&, kube::Fields&, kube::Problems&);

// All of them, compiled once for a translation; borrows the store.
class NetworkPolicies {
 public:
  explicit NetworkPolicies(const kube::Store& store);
  // Those that select a pod; null when none does.
  model::Shared<model::NetworkPolicies> of(const std::string& ns, const Labels& labels) const;

 private:
  struct Compiled {
    const NetworkPolicySpec* spec;
    model::Shared<model::NetworkPolicy> ingress, egress;  // null: not for that direction
  };
  std::map<std::string, std::vector<Compiled>> by_namespace_;
};

}  // namespace nodemesh::translate

// On which node an address is, by what others than that node's agent say: EndpointSlices, which Kubernetes
// writes from its Pods, then Node.spec.podCIDRs. Borrows the store; built for one translation.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/addr.h"
#include "base/cidr_map.h"
#include "kube/store.h"

namespace nodemesh::translate {

// An endpoint that an EndpointSlice says is a Pod.
struct EndpointClaim {
  std::string_view ns;  // the EndpointSlice's, and so the Pod's
  std::string_view pod;
  std::string_view node;  // may be empty
  const kube::Object* object;
};

class Evidence {
 public:
  // `trust_ranges`: false where pods are seen to have addresses outside of their Node's ranges.
  Evidence(const kube::Store& store, bool trust_ranges);

  // Where a pod of namespace `ns` with this address runs. The EndpointSlices of its own namespace decide,
  // since other tenants may write what they like into theirs; then the Nodes' ranges. Empty: nobody says, or
  // two disagree.
  std::string_view node_of(const Addr& address, std::string_view ns) const;
  // By the Nodes' ranges alone; empty: in none.
  std::string_view node_of_range(const Addr& address) const;
  std::span<const EndpointClaim> claims(const Addr& address) const;
  // True for the address of a Node itself, so of its host network, which is never in the mesh.
  bool is_node_address(const Addr& address) const { return node_addresses_.contains(address); }

  const std::unordered_map<Addr, std::vector<EndpointClaim>>& all_claims() const { return claims_; }
  const std::unordered_map<Addr, std::string_view>& node_addresses() const { return node_addresses_; }
  // Of the Nodes, each with its name; none when they are not trusted.
  const std::vector<std::pair<Cidr, std::string_view>>& ranges() const { return ranges_; }

 private:
  std::unordered_map<Addr, std::vector<EndpointClaim>> claims_;
  std::unordered_map<Addr, std::string_view> node_addresses_;
  std::vector<std::pair<Cidr, std::string_view>> ranges_;
  CidrMap<std::string_view> node_by_range_;  // empty: two Nodes have it
};

}  // namespace nodemesh::translate

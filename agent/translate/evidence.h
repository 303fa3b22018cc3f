// On which node an address is, by what others than that node's agent say: EndpointSlices, which Kubernetes
// writes from its Pods, then Node.spec.podCIDRs. Follows a store from one translation to the next: an update
// costs what has changed, and a look at each EndpointSlice. Control thread.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/addr.h"
#include "base/cidr_map.h"
#include "kube/store.h"
#include "translate/core.h"

namespace nodemesh::translate {

// An endpoint that an EndpointSlice says is a Pod.
struct EndpointClaim {
  const kube::Object* object = nullptr;
  const EndpointSliceSpec::Endpoint* endpoint = nullptr;

  std::string_view ns() const { return object->key.ns; }  // the EndpointSlice's, and so the Pod's
  std::string_view pod() const { return endpoint->pod; }
  std::string_view node() const { return endpoint->node; }  // may be empty
};

class Evidence {
 public:
  // `trust_ranges`: false where pods are seen to have addresses outside of their Node's ranges.
  void update(const kube::Store& store, bool trust_ranges);

  // Where a pod of namespace `ns` with this address runs. The EndpointSlices of its own namespace decide,
  // since other tenants may write what they like into theirs; then the Nodes' ranges, as between two that
  // disagree. Empty: nobody says, or two disagree and neither names the node of the range.
  std::string_view node_of(const Addr& address, std::string_view ns) const;
  // By the Nodes' ranges alone; empty: in none.
  std::string_view node_of_range(const Addr& address) const;
  std::span<const EndpointClaim> claims(const Addr& address) const;
  // True for the address of a Node itself, so of its host network, which is never in the mesh.
  bool is_node_address(const Addr& address) const { return node_addresses_.contains(address); }

  // In no particular order.
  template <class Visit>
  void for_each_address(Visit&& visit) const {
    for (const auto& [address, claims] : claims_) visit(address, claims.span());
  }
  const std::unordered_map<Addr, std::string_view>& node_addresses() const { return node_addresses_; }
  // Of the Nodes, each with its name; none when they are not trusted.
  const std::vector<std::pair<Cidr, std::string_view>>& ranges() const { return ranges_; }

 private:
  // One claim nearly always; in place then.
  class ClaimList {
   public:
    std::span<const EndpointClaim> span() const {
      return more_.empty() ? std::span(&one_, one_.object ? 1 : 0) : std::span(more_);
    }
    void add(EndpointClaim claim);
    // Those of `object`. Returns whether none is left.
    bool remove(const kube::Object* object);

   private:
    EndpointClaim one_;
    std::vector<EndpointClaim> more_;  // all of them, where there are several
  };

  void read_nodes(const kube::Store& store, bool trust_ranges);
  void add(const kube::Entry& slice);
  void remove(const kube::Entry& slice);

  std::vector<kube::Entry> slices_;  // as last read, sorted by namespace and name
  std::unordered_map<Addr, ClaimList> claims_;
  std::vector<kube::Entry> nodes_;  // the views below point into them
  std::unordered_map<Addr, std::string_view> node_addresses_;
  std::vector<std::pair<Cidr, std::string_view>> ranges_;
  CidrMap<std::string_view> node_by_range_;  // empty: two Nodes have it
};

}  // namespace nodemesh::translate

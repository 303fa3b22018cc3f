#include "translate/evidence.h"

#include <algorithm>

#include "translate/core.h"

namespace nodemesh::translate {

Evidence::Evidence(const kube::Store& store, bool trust_ranges) {
  for (const auto& entry : store.objects("Node")) {
    const auto& node = static_cast<const NodeSpec&>(*entry.decoded);
    std::string_view name = entry.object->key.name;
    for (const auto& range : trust_ranges ? node.pod_cidrs : std::vector<Cidr>{}) {
      ranges_.emplace_back(range, name);
      auto [holder, added] = node_by_range_.add(range);
      holder = added ? name : std::string_view();
    }
    for (const auto& address : node.addresses) {
      auto [at, added] = node_addresses_.emplace(address, name);
      if (!added) at->second = {};
    }
  }
  // A node that says its own address is in a range of pods says nothing that counts, nor do two that share
  // one.
  std::erase_if(node_addresses_, [&](const auto& entry) {
    return entry.second.empty() || !node_of_range(entry.first).empty();
  });
  for (const auto& entry : store.objects("EndpointSlice")) {
    const auto& slice = static_cast<const EndpointSliceSpec&>(*entry.decoded);
    for (const auto& endpoint : slice.endpoints) {
      if (endpoint.pod.empty()) continue;
      EndpointClaim claim{entry.object->key.ns, endpoint.pod, endpoint.node, entry.object.get()};
      auto& claims = claims_[endpoint.address];
      auto same = [&](const EndpointClaim& other) {
        return other.ns == claim.ns && other.pod == claim.pod && other.node == claim.node;
      };
      if (std::ranges::none_of(claims, same)) claims.push_back(claim);
    }
  }
}

std::span<const EndpointClaim> Evidence::claims(const Addr& address) const {
  auto found = claims_.find(address);
  return found == claims_.end() ? std::span<const EndpointClaim>{} : std::span(found->second);
}

std::string_view Evidence::node_of_range(const Addr& address) const {
  const auto* node = node_by_range_.find(address);
  return node ? *node : std::string_view();
}

std::string_view Evidence::node_of(const Addr& address, std::string_view ns) const {
  std::string_view node;
  bool named = false;
  for (const auto& claim : claims(address)) {
    if (claim.ns != ns || claim.node.empty()) continue;
    if (named && claim.node != node) return {};
    node = claim.node;
    named = true;
  }
  return named ? node : node_of_range(address);
}

}  // namespace nodemesh::translate

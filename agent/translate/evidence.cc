#include "translate/evidence.h"

#include <algorithm>
#include <tuple>

namespace nodemesh::translate {
namespace {

const EndpointSliceSpec& slice_of(const kube::Entry& entry) {
  return static_cast<const EndpointSliceSpec&>(*entry.decoded);
}

auto place_of(const kube::Entry& entry) {
  return std::tie(entry.object->key.ns, entry.object->key.name);
}

}  // namespace

void Evidence::ClaimList::add(EndpointClaim claim) {
  if (!one_.object && more_.empty()) {
    one_ = claim;
    return;
  }
  if (more_.empty()) more_.push_back(one_);
  more_.push_back(claim);
}

bool Evidence::ClaimList::remove(const kube::Object* object) {
  if (one_.object == object) one_ = {};
  std::erase_if(more_, [&](const EndpointClaim& claim) { return claim.object == object; });
  if (more_.size() == 1) {
    one_ = more_.front();
    more_ = {};
  }
  return !one_.object && more_.empty();
}

void Evidence::update(const kube::Store& store, bool trust_ranges) {
  read_nodes(store, trust_ranges);
  auto now = store.objects("EndpointSlice");
  // Both are sorted; what is not in both, as the same object, went or came.
  auto before = slices_.begin();
  std::vector<const kube::Entry*> came;
  for (const auto& entry : now) {
    while (before != slices_.end() && place_of(*before) < place_of(entry)) remove(*before++);
    bool known = before != slices_.end() && place_of(*before) == place_of(entry);
    if (known && before->object == entry.object) {
      ++before;
      continue;
    }
    if (known) remove(*before++);
    came.push_back(&entry);
  }
  while (before != slices_.end()) remove(*before++);
  for (const auto* entry : came) add(*entry);
  slices_.assign(now.begin(), now.end());
}

void Evidence::read_nodes(const kube::Store& store, bool trust_ranges) {
  auto now = store.objects("Node");
  nodes_.assign(now.begin(), now.end());
  ranges_.clear();
  node_addresses_.clear();
  node_by_range_ = {};
  for (const auto& entry : nodes_) {
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
}

void Evidence::add(const kube::Entry& slice) {
  for (const auto& endpoint : slice_of(slice).endpoints) {
    if (!endpoint.pod.empty()) claims_[endpoint.address].add({slice.object.get(), &endpoint});
  }
}

void Evidence::remove(const kube::Entry& slice) {
  for (const auto& endpoint : slice_of(slice).endpoints) {
    auto found = claims_.find(endpoint.address);
    if (found != claims_.end() && found->second.remove(slice.object.get())) claims_.erase(found);
  }
}

std::span<const EndpointClaim> Evidence::claims(const Addr& address) const {
  auto found = claims_.find(address);
  return found == claims_.end() ? std::span<const EndpointClaim>{} : found->second.span();
}

std::string_view Evidence::node_of_range(const Addr& address) const {
  const auto* node = node_by_range_.find(address);
  return node ? *node : std::string_view();
}

std::string_view Evidence::node_of(const Addr& address, std::string_view ns) const {
  std::string_view range = node_of_range(address), node;
  bool two = false, in_range = false;
  for (const auto& claim : claims(address)) {
    if (claim.ns() != ns || claim.node().empty()) continue;
    two = two || (!node.empty() && claim.node() != node);
    in_range = in_range || claim.node() == range;
    node = claim.node();
  }
  if (node.empty()) return range;
  if (!two) return node;
  return in_range ? range : std::string_view();
}

}  // namespace nodemesh::translate

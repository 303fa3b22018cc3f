#include "translate/workload_facts.h"

#include <algorithm>

namespace nodemesh::translate {

const WorkloadSliceSpec::Template& WorkloadFacts::Pod::common() const {
  return *static_cast<const WorkloadSliceSpec&>(*slice->decoded).templates[pod->template_index];
}

bool WorkloadFacts::is_plain(std::string_view node) const {
  auto found = nodes.find(node);
  return found != nodes.end() && found->second.complete && !found->second.any_mesh;
}

WorkloadFacts facts_from_slices(const kube::Store& store, const std::string& own_node) {
  WorkloadFacts facts;
  for (const auto& entry : store.objects("WorkloadSlice")) {
    const auto& slice = static_cast<const WorkloadSliceSpec&>(*entry.decoded);
    if (slice.node == own_node) continue;
    auto& node = facts.nodes[slice.node];
    node.complete |= slice.complete && slice_number(slice.node, entry.object->key.name) == 0;
    node.any_mesh |= std::ranges::any_of(slice.pods, &WorkloadSliceSpec::Pod::mesh);
    for (uint32_t i = 0; i < slice.pods.size(); ++i)
      facts.pods.push_back({slice.node, &slice.pods[i], &entry, i});
  }
  return facts;
}

}  // namespace nodemesh::translate

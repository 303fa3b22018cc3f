#include "translate/workload_facts.h"

#include <algorithm>

namespace nodemesh::translate {

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
    for (size_t i = 0; i < slice.pods.size(); ++i) {
      const auto& pod = slice.pods[i];
      facts.pods.push_back({slice.node, &pod, &slice.templates[pod.template_index], entry.object.get(),
                            "spec.pods[" + std::to_string(i) + "]"});
    }
  }
  return facts;
}

}  // namespace nodemesh::translate

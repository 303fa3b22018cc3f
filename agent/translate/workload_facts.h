// What nodes say of the pods that run on them, before anyone has judged it. WorkloadSlices are the source
// today; a relay that knows the same may take their place, since remote.h reads nothing else. Values that
// borrow the store; built for one translation.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "kube/store.h"
#include "translate/workload_slice.h"

namespace nodemesh::translate {

struct WorkloadFacts {
  struct Pod {
    std::string_view node;  // who says so
    const WorkloadSliceSpec::Pod* pod;
    const kube::Entry* slice;  // where it was said
    uint32_t index;            // of its spec.pods

    const WorkloadSliceSpec::Template& common() const;
    const kube::Object& object() const { return *slice->object; }
    std::string field() const { return "spec.pods[" + std::to_string(index) + "]"; }
  };
  struct Node {
    bool complete = false;  // every pod of the node that has a network of its own is named
    bool any_mesh = false;
  };
  std::vector<Pod> pods;  // those of one slice one after the other, by index
  std::map<std::string_view, Node> nodes;

  // Known to have no pod in the mesh.
  bool is_plain(std::string_view node) const;
};

// From the slices in force, but those of `own_node`: of our pods we know ourselves.
WorkloadFacts facts_from_slices(const kube::Store& store, const std::string& own_node);

}  // namespace nodemesh::translate

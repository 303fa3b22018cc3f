// From this node's pods to its WorkloadSlices: which objects to create, replace and delete so that they say
// what is so, touching as few as possible. A pure function; the control thread calls it, slice_publisher.h
// carries it out.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "model/workload.h"
#include "translate/workload_slice.h"

namespace nodemesh::translate {

// A slice as the API server has it.
struct HeldSlice {
  WorkloadSliceSpec spec;
  std::string resource_version;
};
using HeldSlices = std::map<uint32_t, HeldSlice>;  // by number

struct SliceChange {
  enum class Verb : uint8_t { create, replace, remove };
  Verb verb = Verb::create;
  uint32_t number = 0;
  WorkloadSliceSpec spec;        // empty for remove
  std::string resource_version;  // of what is replaced or removed
};

// The first of the labels, in their order, that a slice leaves out because a pod may have no more than
// 16 KiB of them there; end() where all fit. Those that differ from one roll-out to the next are in no slice.
std::map<std::string, std::string>::const_iterator first_label_left_out(
    const std::map<std::string, std::string>& labels);

// The changes in the order in which they must be made: slice 0, which says that all are there, comes last. A
// pod stays in the slice that names it; new ones go where something is written anyway, then where there is
// room. Only the node's pods with an address and a network of their own are taken; as long as the first of
// them that will be in the mesh has no address, the slices are not complete.
std::vector<SliceChange> plan_slices(const std::string& node,
                                     const std::vector<model::Shared<model::Workload>>& pods,
                                     const HeldSlices& held);

}  // namespace nodemesh::translate

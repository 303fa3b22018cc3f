// WorkloadSlice (nodemesh.dev/v1alpha1, cluster-scoped): what the other nodes must know of one node's pods.
// Each node's agent writes its own, named <node>-<n>, with at most 16 pods each, so that the change of a pod
// costs one small object. Here are its fields, its reader and its text; who may be believed is
// workload_facts.h's. Values; any thread.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/addr.h"
#include "kube/store.h"
#include "model/workload.h"

namespace nodemesh::translate {

inline constexpr size_t kPodsPerSlice = 16;
inline constexpr size_t kAddressesPerPod = 4;

struct WorkloadSliceSpec : kube::Decoded {
  // What pods of one owner have in common.
  struct Template {
    std::string ns;
    std::string service_account;
    std::map<std::string, std::string> labels;
    std::string owner_type;  // as model::Workload::workload_type
    std::string owner_name;
    std::vector<std::string> protocols;  // ALPN names that the node serves at 15008, nm1 or h2

    auto operator<=>(const Template&) const = default;
  };
  struct Pod {
    Text uid;
    Text name;
    std::vector<Addr> addresses;
    size_t template_index = 0;
    bool mesh = false;  // reached by HBONE; otherwise known to be outside

    bool operator==(const Pod&) const = default;
  };
  Text node;
  bool complete = false;  // on <node>-0: the node's slices name all its pods that have a network of their own
  std::vector<model::Shared<Template>> templates;  // equal ones are one for all slices of a store
  std::vector<Pod> pods;

  // Compares the content; Decoded has none.
  bool operator==(const WorkloadSliceSpec& other) const {
    return node == other.node && complete == other.complete && templates == other.templates &&
           pods == other.pods;
  }
};

// Reader for kube::Kind. Refuses a slice whose name is not <spec.node>-<number>: the admission policy
// compares the writer's node with the name.
std::shared_ptr<const kube::Decoded> read_workload_slice(const kube::Object&, kube::Fields&, kube::Problems&);

// "node1", 3 → "node1-3", and back; nullopt when the name is not one of that node.
std::string slice_name(std::string_view node, uint32_t number);
std::optional<uint32_t> slice_number(std::string_view node, std::string_view name);

// The object as JSON, without resourceVersion when that is empty. `node_uid`: of the Node that owns the
// slice, so that it goes with it; empty: no owner.
std::string slice_json(const WorkloadSliceSpec& slice, uint32_t number, std::string_view node_uid,
                       std::string_view resource_version);

}  // namespace nodemesh::translate

// Pods of other nodes to workloads, in cluster mode: which of what nodes say is believed, and what is known
// of addresses that nobody is believed about. An address counts only from the node that has it by the word of
// others (evidence.h); two that count for one address count for nothing, unless it is in the range of one of
// them. Control thread; pure but for what RemoteMemory keeps.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "model/interner.h"
#include "model/peers.h"
#include "model/workload.h"
#include "translate/claims.h"
#include "translate/evidence.h"
#include "translate/workload_facts.h"

namespace nodemesh::translate {

struct RemoteOptions {
  std::string trust_domain;
  std::function<bool(const Addr&)> is_ours;  // the address of a pod of this node
};

// The workloads of the last translation by the slice that named them: what was said in the same words and is
// believed as before stays the same object, and costs no more than a look.
struct RemoteMemory {
  struct Slice {
    std::shared_ptr<const kube::Object> object;
    std::string trust_domain;
    Text region, zone;
    std::vector<model::Shared<model::Workload>> pods;  // by their index; null: not believed
    uint64_t round = 0;
  };
  std::unordered_map<std::string, Slice> slices;                              // by name
  std::unordered_map<std::string, model::Shared<model::Workload>> strangers;  // by "namespace/name"
  model::Interner shared;                                                     // what workloads have in common
  uint64_t round = 0;
};

// Without policy. Among them those with Mesh::unknown: an address that an EndpointSlice or a slice names and
// of whose owner nothing is believed; their service account is empty, their namespace that of the
// EndpointSlice, or empty where two name it.
std::vector<model::Shared<model::Workload>> remote_workloads(const kube::Store& store,
                                                             const WorkloadFacts& facts,
                                                             const Evidence& evidence,
                                                             const RemoteOptions& options,
                                                             RemoteMemory& memory, Reports& reports);

// What is known of addresses without a workload.
model::PeerRules peer_rules(const kube::Store& store, const WorkloadFacts& facts, const Evidence& evidence,
                            model::UnknownPeer unknown);

}  // namespace nodemesh::translate

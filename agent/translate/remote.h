// Pods of other nodes to workloads, in cluster mode: which of what nodes say is believed, and what is known
// of addresses that nobody is believed about. An address counts only from the node that has it by the word of
// others (evidence.h); two that count for one address count for nothing. Pure; control thread.
#pragma once

#include <functional>
#include <vector>

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

// Without policy. Among them those with Mesh::unknown: an address that an EndpointSlice or a slice names and
// of whose owner nothing is believed; their service account is empty, their namespace that of the
// EndpointSlice, or empty where two name it.
std::vector<model::Workload> remote_workloads(const kube::Store& store, const WorkloadFacts& facts,
                                              const Evidence& evidence, const RemoteOptions& options,
                                              Reports& reports);

// What is known of addresses without a workload.
model::PeerRules peer_rules(const kube::Store& store, const WorkloadFacts& facts, const Evidence& evidence,
                            model::UnknownPeer unknown);

}  // namespace nodemesh::translate

// nodemesh's own objects, as checks look for them. Pure; pointers are into the facts.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "ctl/check.h"

namespace nodemesh::ctl {

// What lacks without a controller that leads, whoever signs.
inline constexpr const char* kNobodyLeads =
    "policies get no status, and nodes without an agent no WorkloadSlices";

const Json* agent_set(const Cluster& cluster);   // the DaemonSet; null: absent
const Json* controller(const Cluster& cluster);  // the Deployment; null: absent
std::vector<const Json*> controllers(const Cluster& cluster);
// Who signs for the agents: host:port as they are told; "" without a DaemonSet.
std::string authority_of(const Cluster& cluster);
// Whether that is the controller; so it is where nothing is installed.
bool signs_itself(const Cluster& cluster);
// The ConfigMap, in nodemesh's namespace, whose roots vouch for that authority.
std::string bundle_of(const Cluster& cluster);
// Also of a pod that waits to be scheduled; "" where nothing says.
std::string node_of(const Json& pod);
// One for each node, the ready one where there are two.
std::map<std::string, const Json*> agents_by_node(const Cluster& cluster);

}  // namespace nodemesh::ctl

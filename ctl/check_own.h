// nodemesh's own objects, as checks look for them. Pure; pointers are into the facts.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "ctl/check.h"

namespace nodemesh::ctl {

const Json* agent_set(const Cluster& cluster);   // the DaemonSet; null: absent
const Json* controller(const Cluster& cluster);  // the Deployment; null: absent
std::vector<const Json*> controllers(const Cluster& cluster);
// Also of a pod that waits to be scheduled; "" where nothing says.
std::string node_of(const Json& pod);
// One for each node, the ready one where there are two.
std::map<std::string, const Json*> agents_by_node(const Cluster& cluster);

}  // namespace nodemesh::ctl

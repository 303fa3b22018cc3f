// Waiting for nodemesh to run, or to be gone, with the reason that it waits. The judgement is a pure function
// of the objects; the waiting asks for them once a second, and says what it waits for as the context's
// progress. One thread, blocking.
#pragma once

#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "base/clock.h"
#include "ctl/cluster_api.h"
#include "ctl/context.h"

namespace nodemesh::ctl {

// Why an installation does not run yet; "" when it does. `deployment` null: there is none to wait for.
std::string why_not_running(const nlohmann::json& daemonset, const nlohmann::json& deployment,
                            const std::vector<nlohmann::json>& pods);
// The error is the last reason.
Result<> wait_running(Context& context, ClusterApi& api, seconds at_most);

// Nothing can be made in a namespace that is on its way out: waits until nodemesh's is gone, if it is.
Result<> wait_not_terminating(Context& context, ClusterApi& api, seconds at_most);

// How the agents of nodes ended, as far as the API server says.
struct NodeEnd {
  std::string node;
  std::string doubt;  // why something may remain there; "" when its warden ended by itself
};
// Until no pod of nodemesh's is left in its namespace. Every node that is not ready is in the answer, with
// doubt.
Result<std::vector<NodeEnd>> wait_gone(Context& context, ClusterApi& api, seconds at_most);

}  // namespace nodemesh::ctl

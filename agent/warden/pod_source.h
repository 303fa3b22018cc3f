// Where the warden learns which pods its node has: the objects of a folder, or its own watch of the API
// server. The warden's thread only.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/reason.h"
#include "io/reactor.h"
#include "kube/cluster.h"
#include "model/workload.h"

namespace nodemesh::warden {

// Every pod of this node that has not finished, enrolled or not, the host-network ones too.
// Their uids are as model::Workload says.
using LocalPods = std::vector<model::Shared<model::Workload>>;

class PodSource {
 public:
  using Changed = std::move_only_function<void(LocalPods)>;
  virtual ~PodSource() = default;
  // Calls `changed` on the reactor with the whole list, once when it is known (a folder: within this call)
  // and after each change.
  virtual Result<> start(Changed changed) = 0;
  // The agent is being removed from the cluster, not stopped for an upgrade.
  virtual bool removed() const { return false; }
};

// Pods of `node` in a folder or at an API server, where only they, Namespaces and RuntimeClasses are read,
// and the DaemonSet of the agent's own namespace that is called `daemonset` (empty: none). `snapshot_file`
// (empty: none) is for a start while the API server is away; only we may be able to write it. Fails with one
// sentence for the operator.
Result<std::unique_ptr<PodSource>> make_pod_source(io::Reactor& reactor, const Clock& clock,
                                                   const kube::SourceChoice& choice, std::string node,
                                                   const std::string& daemonset,
                                                   const std::string& snapshot_file);

}  // namespace nodemesh::warden

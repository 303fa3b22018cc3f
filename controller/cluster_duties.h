// What the leader does beside the certificates: conditions and Events on policies, WorkloadSlices of nodes
// without an agent, marks on Pods. It reads what it needs for that only while it leads, over a connection of
// its own. Main thread only.
#pragma once

#include <memory>
#include <string>

#include "controller/agentless.h"
#include "controller/events.h"
#include "controller/lease.h"
#include "controller/node_pods.h"
#include "controller/pod_marks.h"
#include "controller/policy_statuses.h"
#include "kube/cluster.h"

namespace nodemesh::controller {

class ClusterDuties final : public LeaderDuty {
 public:
  struct Settings {
    kube::Access access;
    translate::TranslateOptions translate;  // as the agents'
    AgentlessNodes::Settings agentless;
    bool interop_istio = false;  // of pods of ours
  };
  struct Figures {
    size_t agentless_nodes = 0;
    uint64_t slice_writes = 0, status_writes = 0, mark_writes = 0;  // since this replica leads
  };
  // All outlive it.
  ClusterDuties(io::Reactor& reactor, const Clock& clock, Api& api, EventPoster& events, NodePods& pods,
                Settings settings);
  ~ClusterDuties() override;

  void begin() override;
  void end() override;
  // Pods may have changed. Nothing is concluded from them before they are complete.
  void pods_changed(bool complete);
  Figures figures() const;

 private:
  struct Watching;
  void note(const kube::Object& object);
  void forget(const kube::ObjectKey& key);
  void note_kind(const kube::ObjectKey& key);
  void update();

  io::Reactor& reactor_;
  const Clock& clock_;
  Api& api_;
  EventPoster& events_;
  NodePods& pods_;
  const Settings settings_;
  bool pods_complete_ = false;
  std::unique_ptr<Watching> watching_;  // while it leads
  io::Timer timer_{[this] { update(); }};
};

}  // namespace nodemesh::controller

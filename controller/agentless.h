// Writes the WorkloadSlices of nodes without an agent, so that meshed pods elsewhere know that the pods there
// speak plaintext instead of holding them for unknown. A node counts as one without an agent when it has had
// no Pod of an agent, running or not, for 10 s, or for a minute where its slices name a meshed pod: between
// two Pods of an agent that is being replaced there is a moment with none. From the moment an agent's Pod is
// on the node its slices are the agent's, which finds and corrects ours.
//
// A pod that its agent has called meshed stays so: it is captured by programs that outlive the agent, so
// plaintext to it would be shown on the wire and be refused. With interop_istio a pod that Istio's ztunnel
// serves is meshed too, for as long as its annotation says so. Main thread only; leader only.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>

#include "base/clock.h"
#include "controller/api.h"
#include "controller/node_pods.h"
#include "io/reactor.h"
#include "kube/store.h"
#include "translate/slice_publisher.h"

namespace nodemesh::controller {

class AgentlessNodes final : private translate::SliceApi {
 public:
  struct Settings {
    seconds plain{10}, meshed{60};  // without an agent's Pod, where no slice, or one, names a meshed pod
    size_t begin_at_once = 20;      // nodes that are begun with together
    bool interop_istio = false;     // kRedirection is believed
  };
  // A node has begun or ceased to be one without an agent.
  using OnNode = std::function<void(const std::string& node)>;
  // All outlive it.
  AgentlessNodes(io::Reactor& reactor, const Clock& clock, Api& api, const NodePods& pods, Settings settings,
                 OnNode on_node);

  // Nodes, slices or pods have changed; both are complete. The store outlives this.
  void update(const kube::Store& store);
  // Whether it is certain that nobody but us speaks for the node.
  bool agentless(const std::string& node) const;
  size_t size() const;
  uint64_t writes() const;

 private:
  struct Node {
    Monotonic::time_point since;
    std::unique_ptr<translate::SlicePublisher> publisher;
  };
  // What slices say: the uids of each node's pods in the mesh, where there are any.
  using Said = std::map<std::string, std::set<std::string>, std::less<>>;
  void call(Verb verb, const std::string& name, std::string body, Done done) override;
  Said said(const kube::Store& store) const;
  // Whether the node's time has come; if not, `wait` gets shorter.
  bool due(const Node& node, bool meshed, Monotonic::duration& wait) const;
  void drop_others(const kube::Store& store);
  bool meshed(const PodCard& pod, bool said);
  void publish(const std::string& name, Node& node, const kube::Store& store, const Said& said);

  io::Reactor& reactor_;
  const Clock& clock_;
  Api& api_;
  const NodePods& pods_;
  const Settings settings_;
  OnNode on_node_;
  const kube::Store* store_ = nullptr;
  std::map<std::string, Node> nodes_;
  std::set<std::string> redirected_;  // uids that are in slices as meshed for their annotation alone
  uint64_t writes_before_ = 0;        // of publishers that are gone
  io::Timer timer_{[this] { update(*store_); }};
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

}  // namespace nodemesh::controller

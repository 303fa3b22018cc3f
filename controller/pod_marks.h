// The visible mark on Pods that a label wants in the mesh: the condition nodemesh.dev/Enrolled in their
// status, True, or False with the reason, so that `kubectl describe pod` answers. Written here and not by the
// agents, who know: the right to write status of Pods is the right to write their addresses, and RBAC has no
// boundary between nodes. What an agent says of its own pods it says in its WorkloadSlices. Pods that nobody
// wants in the mesh get no mark. With interop_istio, what is in the mesh has Istio's annotation besides, so
// that ztunnels dial its port 15008. Main thread only; leader only.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>

#include "controller/api.h"
#include "controller/conditions.h"
#include "controller/node_pods.h"
#include "controller/paced_writes.h"
#include "kube/store.h"
#include "translate/workloads.h"

namespace nodemesh::controller {

// What is known of the node that a Pod is on.
struct NodeWord {
  bool agent = false;      // an agent's Pod is there
  bool agentless = false;  // it is certain that none is
  // What its agent's slices say: reached by HBONE, or outside; nothing: they do not name the Pod.
  std::optional<bool> mesh;
};

// The mark that a Pod should have; nothing: none, or that which it has. Pure.
std::optional<Condition> wanted_mark(const PodCard& pod, translate::Enrolment enrolment,
                                     std::string_view handler, const NodeWord& word);

// Whether a Pod with that mark is to have kRedirection; nothing: it is Istio's to write. Pure.
std::optional<bool> wanted_redirection(const PodCard& pod, const Condition& mark, const NodeWord& word);

class PodMarks {
 public:
  using Agentless = std::function<bool(const std::string& node)>;
  // All outlive it.
  PodMarks(io::Reactor& reactor, const Clock& clock, Api& api, const NodePods& pods, Agentless agentless,
           bool interop_istio = false, PacedWrites::Settings pace = {.gap = milliseconds(20)});

  // Looks at the Pods of these nodes; the store has Namespaces, RuntimeClasses and WorkloadSlices.
  void update(const kube::Store& store, const std::set<std::string>& nodes);
  uint64_t writes() const { return writes_.writes(); }
  bool idle() const { return writes_.idle(); }

 private:
  struct Wanted {
    std::string uid;
    Condition mark;
    std::optional<bool> redirection;
    bool operator==(const Wanted&) const = default;
    bool stands_on(const PodCard& pod) const {
      return pod.mark == mark && redirection.value_or(pod.redirected) == pod.redirected;
    }
  };
  void judge(const kube::Store& store, const PodCard& pod, NodeWord word);
  void write(const PacedWrites::Key& key, PacedWrites::Done done);
  PacedWrites::Outcome on_written(const PacedWrites::Key& key, const Wanted& said, const ApiReply& reply);

  const Clock& clock_;
  Api& api_;
  const NodePods& pods_;
  Agentless agentless_;
  const bool interop_istio_;
  std::map<PacedWrites::Key, Wanted> wanted_;  // not written yet
  std::string trouble_;
  PacedWrites writes_;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

}  // namespace nodemesh::controller

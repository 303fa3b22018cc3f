// Which Pods are on which node, with what a WorkloadSlice says of each, what decides on its enrolment, and
// the mark that it carries; and which nodes have an agent. Filled from the watch of all Pods; those of one
// owner share their labels, so that a Pod costs some 300 bytes. Main thread only; no I/O.
#pragma once

#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "controller/conditions.h"
#include "kube/objects.h"
#include "model/interner.h"
#include "translate/workload_slice.h"

namespace nodemesh::controller {

// The condition in a Pod's status that says whether it is in the mesh, and if not, why.
inline constexpr std::string_view kEnrolled = "nodemesh.dev/Enrolled";

// By it Istio's CNI plugin says that a Pod's traffic goes by a ztunnel, which has 15008 there, and istiod
// tells ztunnels to dial that. With `--interop-istio` it stands on our Pods too, and is believed of Pods on
// nodes that are not ours.
inline constexpr std::string_view kRedirection = "ambient.istio.io/redirection";

struct PodCard {
  using Template = translate::WorkloadSliceSpec::Template;
  std::string ns, name, uid, node;
  std::vector<Addr> addresses;
  model::Shared<Template> common;
  std::string runtime_class;
  bool host_network = false, sidecar = false;
  bool agent = false;             // runs as one of our agents
  bool redirected = false;        // kRedirection is `enabled`
  std::optional<Condition> mark;  // kEnrolled, as the Pod has it
};

class NodePods {
 public:
  // The service accounts, namespace and name, that agents run as.
  explicit NodePods(std::set<std::pair<std::string, std::string>> agents) : agents_(std::move(agents)) {}
  NodePods(const NodePods&) = delete;
  NodePods& operator=(const NodePods&) = delete;

  // A Pod that cannot be read, has finished or is on no node is as if it were not there.
  void upsert(const kube::Object& pod);
  void remove(const std::string& ns, const std::string& name);

  bool has_agent(std::string_view node) const;
  // Valid until the next change.
  std::vector<const PodCard*> on(std::string_view node) const;
  const PodCard* find(const std::string& ns, const std::string& name) const;
  std::vector<std::string> nodes() const;  // that have Pods
  // The nodes of Pods that have changed since the last call.
  std::set<std::string> take_changed() { return std::exchange(changed_, {}); }

 private:
  struct Node {
    std::set<const PodCard*> pods;
    size_t agents = 0;
  };
  std::optional<PodCard> read(const kube::Object& pod);

  const std::set<std::pair<std::string, std::string>> agents_;
  std::map<std::pair<std::string, std::string>, PodCard> pods_;
  std::map<std::string, Node, std::less<>> nodes_;
  model::Interner shared_;
  std::set<std::string> changed_;
};

}  // namespace nodemesh::controller

// Which Pods exist: the few facts of each that a certificate depends on, by name and by node. Filled from a
// watch of all Pods, or from one live answer. Main thread only; no I/O.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>

#include "kube/objects.h"

namespace nodemesh::controller {

struct PodFact {
  std::string ns, name, uid, node, service_account;
  bool finished = false;  // phase Succeeded or Failed: its containers run no more

  bool operator==(const PodFact&) const = default;
};

// nullopt when the object is no Pod that could run: no uid, or no service account.
std::optional<PodFact> read_pod(const kube::Object& object);
// From the body of a GET of one Pod.
std::optional<PodFact> read_pod_json(std::string_view body);

class PodIndex {
 public:
  void upsert(PodFact pod);
  void remove(const std::string& ns, const std::string& name);
  // Null: not known. Valid until the next change.
  const PodFact* find(const std::string& ns, const std::string& name) const;
  // Is there an unfinished Pod of this service account on the node?
  bool runs(const std::string& node, const std::string& ns, const std::string& service_account) const;
  size_t size() const { return pods_.size(); }

 private:
  using Place = std::tuple<std::string, std::string, std::string>;  // node, namespace, service account
  void count(const PodFact& pod, int by);

  std::map<std::pair<std::string, std::string>, PodFact> pods_;
  std::map<Place, int> places_;  // of unfinished Pods
};

}  // namespace nodemesh::controller

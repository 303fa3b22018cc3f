// Where the warden learns which pods its node has. Today the objects of a folder; a source that watches the
// API server or kubelet fits the same interface. The warden's thread only.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/reason.h"
#include "io/reactor.h"
#include "model/workload.h"

namespace nodemesh::warden {

// Every pod of this node that has not finished, enrolled or not, the host-network ones too.
// Their uids are as model::Workload says.
using LocalPods = std::vector<model::Shared<model::Workload>>;

class PodSource {
 public:
  using Changed = std::move_only_function<void(LocalPods)>;
  virtual ~PodSource() = default;
  // Calls `changed` once now, and on the reactor with the whole list after each change.
  virtual Result<> start(Changed changed) = 0;
};

// Pods of `node` among the manifests of `folder`.
std::unique_ptr<PodSource> make_folder_source(io::Reactor& reactor, std::string folder, std::string node);

}  // namespace nodemesh::warden

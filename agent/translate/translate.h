// From the objects in a Store to the immutable Snapshot that the data path uses, and a status for every
// object: in effect a pure function, run on the control thread after each change. Parts that did not change
// are taken over from the previous snapshot, so that workers and sessions see the same pointers.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/addr.h"
#include "kube/store.h"
#include "model/snapshot.h"

namespace nodemesh::translate {

struct TranslateOptions {
  std::string node;                            // the agent's own
  std::string trust_domain = "cluster.local";  // unless MeshConfig says otherwise
  std::string mesh_config_namespace =
      "istio-system";  // of ConfigMap `istio`; also the root namespace by default
  std::string cluster_domain = "cluster.local";
  std::vector<Cidr> cluster_cidrs;  // in addition to those of the Nodes
  // The store has the Pods of `node` alone, and WorkloadSlices for the others; a folder has all Pods.
  bool cluster = false;
  model::UnknownPeer unknown_peer = model::UnknownPeer::hold;
};

struct Translation {
  std::shared_ptr<const model::Snapshot> snapshot;  // `previous` itself when nothing changed
  std::vector<kube::Status> statuses;               // by file and line
};

// What one translation leaves for the next of the same store, so that it costs little more than what has
// changed. Empty at first; of one thread.
class TranslateMemory {
 public:
  TranslateMemory();
  ~TranslateMemory();

 private:
  friend class Translator;
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

// The kinds that are read; for the Store.
std::span<const kube::Kind> kinds();

// Of PeerAuthentications, AuthorizationPolicies and DestinationRules alone, as translate() says them: for who
// has read those with the Services, Nodes and the MeshConfig, and no Pods.
std::vector<kube::Status> policy_statuses(const kube::Store& store, const TranslateOptions& options);

Translation translate(const kube::Store& store, const std::shared_ptr<const model::Snapshot>& previous,
                      const TranslateOptions& options);
// The same result; `memory` is of this store and of these options.
Translation translate(const kube::Store& store, const std::shared_ptr<const model::Snapshot>& previous,
                      const TranslateOptions& options, TranslateMemory& memory);

}  // namespace nodemesh::translate

// Tells other nodes of this node's pods: the way from a snapshot to the API server's WorkloadSlices. There is
// none in standalone mode, where everybody reads the same folder. Control thread only.
#pragma once

#include <string>

#include "kube/api_client.h"
#include "kube/store.h"
#include "model/snapshot.h"
#include "translate/slice_publisher.h"

namespace nodemesh::proxy {

class Slices final : private translate::SliceApi {
 public:
  // `reactor` and `client` outlive it.
  Slices(io::Reactor& reactor, kube::ApiClient& client, std::string node);

  // What the API server has and what is so now; both complete, since from the first call on the slices say
  // that they are.
  void update(const kube::Store& store, const model::Snapshot& snapshot);
  const translate::SlicePublisher& publisher() const { return publisher_; }

 private:
  void call(Verb verb, const std::string& name, std::string body, Done done) override;

  kube::ApiClient& client_;
  const std::string node_;
  translate::SlicePublisher publisher_;
};

}  // namespace nodemesh::proxy

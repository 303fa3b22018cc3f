#include "proxy/slices.h"

#include <utility>

namespace nodemesh::proxy {
Slices::Slices(io::Reactor& reactor, kube::ApiClient& client, std::string node)
    : client_(client), node_(std::move(node)), publisher_(reactor, *this, node_) {}

void Slices::update(const kube::Store& store, const model::Snapshot& snapshot) {
  publisher_.observe(store);
  std::vector<model::Shared<model::Workload>> own;
  for (const auto& workload : snapshot.pods()) {
    if (workload->node == node_) own.push_back(workload);
  }
  publisher_.set_pods(std::move(own));
}

void Slices::call(Verb verb, const std::string& name, std::string body, Done done) {
  client_.request(translate::slice_request(verb, name, std::move(body)),
                  [done = std::move(done)](Result<kube::ApiAnswer> answer) mutable {
                    if (!answer) return done({.status = 0, .body = answer.error().message});
                    done({.status = answer->status, .body = std::move(answer->body)});
                  });
}

}  // namespace nodemesh::proxy

#include "proxy/slices.h"

#include <utility>

namespace nodemesh::proxy {
namespace {

constexpr const char* kCollection = "/apis/nodemesh.dev/v1alpha1/workloadslices";

kube::Verb verb_of(translate::SliceApi::Verb verb) {
  switch (verb) {
    case translate::SliceApi::Verb::get:
      return kube::Verb::get;
    case translate::SliceApi::Verb::create:
      return kube::Verb::post;
    case translate::SliceApi::Verb::replace:
      return kube::Verb::put;
    case translate::SliceApi::Verb::remove:
      break;
  }
  return kube::Verb::remove;
}

}  // namespace

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
  std::string path = kCollection;
  if (verb != Verb::create) path += "/" + kube::percent_encode(name);
  client_.request({.verb = verb_of(verb), .path = std::move(path), .body = std::move(body)},
                  [done = std::move(done)](Result<kube::ApiAnswer> answer) mutable {
                    if (!answer) return done({.status = 0, .body = answer.error().message});
                    done({.status = answer->status, .body = std::move(answer->body)});
                  });
}

}  // namespace nodemesh::proxy

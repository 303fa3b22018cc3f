#include "controller/folder_authorizer.h"

#include "translate/core.h"

namespace nodemesh::controller {

void FolderAuthorizer::update(const kube::Store& store) {
  accounts_.clear();
  for (const kube::Entry& entry : store.objects("Pod")) {
    const auto* pod = static_cast<const translate::PodSpec*>(entry.decoded.get());
    if (pod != nullptr && !pod->finished) accounts_.emplace(entry.object->key.ns, pod->service_account);
  }
}

void FolderAuthorizer::authorize(const Caller&, const std::optional<tls::SpiffeId>& asked, Done done) {
  if (!asked)
    return done(refused(Refusal::identity_invalid,
                        "ImpersonatedIdentity is missing; a folder's authority knows no callers"));
  if (accounts_.contains({asked->ns, asked->service_account})) return done(*asked);
  done(refused(Refusal::no_pod_on_node, "no unfinished Pod in the folder has service account " + asked->ns +
                                            "/" + asked->service_account));
}

}  // namespace nodemesh::controller

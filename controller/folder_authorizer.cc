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

Result<> FolderAuthorizer::authorize(const Caller&, const tls::SpiffeId& id) const {
  if (accounts_.contains({id.ns, id.service_account})) return {};
  return fail("no unfinished Pod in the folder has service account " + id.ns + "/" + id.service_account);
}

}  // namespace nodemesh::controller

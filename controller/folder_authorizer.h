// Standalone authorisation: a certificate only for a service account that has an unfinished Pod in the
// folder. Which processes may ask at all is decided earlier, by their uid, when they connect. Main thread
// only.
#pragma once

#include <set>
#include <string>
#include <utility>

#include "controller/issuer.h"
#include "kube/store.h"

namespace nodemesh::controller {

class FolderAuthorizer final : public Authorizer {
 public:
  // Reads the Pods in force; call after each change of the store.
  void update(const kube::Store& store);
  void authorize(const Caller& caller, const std::optional<tls::SpiffeId>& asked, Done done) override;
  size_t size() const { return accounts_.size(); }

 private:
  std::set<std::pair<std::string, std::string>> accounts_;  // namespace, service account
};

}  // namespace nodemesh::controller

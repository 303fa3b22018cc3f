// Which access policies apply to which workload: scopes, selectors, targets and order of PeerAuthentications
// and AuthorizationPolicies. Built for one translation, on the control thread; borrows the store.
#pragma once

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "kube/store.h"
#include "model/snapshot.h"
#include "translate/istio.h"
#include "translate/istio_authz.h"
#include "translate/status.h"

namespace nodemesh::translate {

class Policies {
 public:
  // `previous` may be null; its compiled policies are reused where they are equal.
  Policies(const kube::Store& store, const model::MeshSettings& mesh, const model::Snapshot* previous,
           Reports& reports);

  // What a workload demands as a server. `services`: the pod's ports by the Services whose EndpointSlices
  // name it.
  using PortsByService = std::map<std::string, std::vector<uint16_t>>;
  model::Shared<model::WorkloadPolicy> of(const std::string& ns, const Labels& labels,
                                          const PortsByService& services);

 private:
  struct Peer {
    const kube::Object* object;
    const PeerAuthenticationSpec* spec;
  };
  struct Authorization {
    const kube::Object* object;
    const AuthorizationPolicySpec* spec;
    model::Shared<model::Policy> policy;
  };

  void add_peers(const kube::Store& store, Reports& reports);
  void add_authorizations(const kube::Store& store, const model::Snapshot* previous, Reports& reports);
  void add_mtls(model::WorkloadPolicy& out, const std::string& ns, const Labels& labels) const;
  void add_policies(model::WorkloadPolicy& out, const std::string& scope, const Labels& labels,
                    const PortsByService* services) const;

  const model::MeshSettings& mesh_;
  std::map<std::string, std::vector<Peer>> peers_;                    // by namespace, oldest first
  std::map<std::string, std::vector<Authorization>> authorizations_;  // by namespace, oldest first
  std::map<std::tuple<std::string, Labels, PortsByService>, model::Shared<model::WorkloadPolicy>> made_;
};

// Oldest creationTimestamp first, those without one last, then by namespace and name.
bool older(const kube::Object& a, const kube::Object& b);

}  // namespace nodemesh::translate

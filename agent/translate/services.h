// Services with their EndpointSlices and DestinationRules to model services. Pure; control thread.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "kube/store.h"
#include "model/service.h"
#include "translate/claims.h"
#include "translate/core.h"
#include "translate/istio.h"
#include "translate/policies.h"
#include "translate/translate.h"

namespace nodemesh::translate {

// The EndpointSlices of each Service, by "namespace/name".
class Slices {
 public:
  explicit Slices(const kube::Store& store, Reports& reports);
  std::span<const kube::Entry* const> of(const std::string& ns, const std::string& service) const;
  // For each pod ("namespace/name") its ports by Service.
  const Policies::PortsByService& ports_of(const std::string& pod) const;

 private:
  std::map<std::string, std::vector<const kube::Entry*>> by_service_;
  std::map<std::string, Policies::PortsByService> by_pod_;
};

// DestinationRules by scope: the Service's namespace, then the root namespace; the most specific host, then
// the oldest.
class BalancerRules {
 public:
  BalancerRules(const kube::Store& store, const std::string& root_namespace,
                const std::string& cluster_domain, Reports& reports);
  const kube::Entry* find(const std::string& ns, const std::string& host) const;

 private:
  std::string root_namespace_;
  std::map<std::string, std::vector<const kube::Entry*>> by_namespace_;  // best first
};

// Null when there is none; by pod name, else by address.
using FindWorkload = std::function<model::Shared<model::Workload>(
    const std::string& ns, const std::string& pod, const Addr& address)>;

model::Service make_service(const kube::Entry& service, const Slices& slices, const BalancerRules& rules,
                            const TranslateOptions& options, const FindWorkload& find_workload,
                            Claims& claims);

}  // namespace nodemesh::translate

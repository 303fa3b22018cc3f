// Services with their EndpointSlices and DestinationRules to model services. Pure; control thread.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <utility>
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
  // `node`: the one whose pods ports_of() will be asked for; empty: all.
  Slices(const kube::Store& store, std::string_view node, Reports& reports);
  std::span<const kube::Entry* const> of(std::string_view ns, std::string_view service) const;
  // For each pod ("namespace/name") its ports by Service.
  const Policies::PortsByService& ports_of(const std::string& pod) const;

 private:
  std::map<std::pair<std::string_view, std::string_view>, std::vector<const kube::Entry*>> by_service_;
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

// Services as they were made last, each with all that it was made of: one of which nothing has changed costs
// a look at its endpoints.
struct ServiceMemory {
  struct Made {
    kube::Entry service;
    std::vector<kube::Entry> slices;
    std::shared_ptr<const kube::Object> rule;
    std::vector<Addr> vips;  // those it was granted
    model::Shared<model::Service> result;
    uint64_t round = 0;
  };
  std::map<std::pair<std::string, std::string>, Made, std::less<>> by_name;
  uint64_t round = 0;
};

model::Service make_service(const kube::Entry& service, const Slices& slices, const BalancerRules& rules,
                            const TranslateOptions& options, const FindWorkload& find_workload,
                            std::vector<Addr> vips);
// The same, or the one made before if nothing that it was made of has changed.
model::Shared<model::Service> make_service(const kube::Entry& service, const Slices& slices,
                                           const BalancerRules& rules, const TranslateOptions& options,
                                           const FindWorkload& find_workload, Claims& claims,
                                           ServiceMemory& memory);

}  // namespace nodemesh::translate

// Istio's AuthorizationPolicy, compiled to model rules at L4. HTTP fields meet their documented fate on TCP:
// an ALLOW rule with one is dropped, a DENY rule loses just that field; both are said in the object's status.
// Immutable values; any thread.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "kube/store.h"
#include "model/policy.h"
#include "translate/istio.h"

namespace nodemesh::translate {

struct TargetRef {
  std::string name;  // of a Service in the policy's namespace
  uint32_t line = 0;
  uint32_t column = 0;
  std::string field;
};

struct AuthorizationPolicySpec : kube::Decoded {
  std::optional<Labels> selector;
  std::vector<TargetRef> targets;
  bool has_targets =
      false;           // also when no target is of a kind that is served; then the policy applies to nothing
  bool audit = false;  // decides nothing
  model::Policy policy;  // principals as written
};

std::shared_ptr<const kube::Decoded> read_authorization_policy(const kube::Object&, kube::Fields&,
                                                               kube::Problems&);

// Principals in the mesh's own trust domain, or in `cluster.local`, which stands for it, match all of its
// names.
void expand_trust_domains(model::Policy& policy, const std::string& trust_domain,
                          const std::vector<std::string>& aliases);

}  // namespace nodemesh::translate

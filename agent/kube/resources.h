// From kinds to the API's paths. Values; any thread.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "kube/store.h"

namespace nodemesh::kube {

struct Resource {
  std::string group;                  // "" for the core group
  std::vector<std::string> versions;  // the best first; the server may have only a later one
  std::string plural;                 // "endpointslices"
  std::string kind;

  // "apps/v1", or "v1".
  std::string api_version(size_t version = 0) const;
  // "/apis/apps/v1/namespaces/x/deployments"; all namespaces (or a cluster-scoped kind) when `ns` is empty.
  std::string path(std::string_view ns = {}, size_t version = 0) const;
  std::string object_path(std::string_view ns, std::string_view name, size_t version = 0) const;
  // "endpointslices.discovery.k8s.io", the name that RBAC and CRDs use.
  std::string full_name() const;
};

// The resource of a kind, its plural by the rule that all kinds we read follow.
Resource resource_of(const Kind& kind);
// "NetworkPolicy" → "networkpolicies".
std::string plural_of(std::string_view kind);
// Whether every API server has the group; others come with a CRD and may be absent.
bool is_builtin_group(std::string_view group);

}  // namespace nodemesh::kube

#include "upstream/lb/policy.h"

namespace nodemesh::upstream {

size_t random_choice(std::span<const model::Endpoint> endpoints, const PortLoad&, uint64_t random) {
  return static_cast<size_t>(random % endpoints.size());
}

}  // namespace nodemesh::upstream

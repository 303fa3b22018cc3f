#include "upstream/lb/policy.h"

namespace nodemesh::upstream {

size_t round_robin(std::span<const model::Endpoint> endpoints, const PortLoad& load, uint64_t) {
  return static_cast<size_t>(load.picks % endpoints.size());
}

}  // namespace nodemesh::upstream

#include "upstream/lb/policy.h"

namespace nodemesh::upstream {

// Power of two choices: the less loaded of two different random endpoints.
size_t least_request(std::span<const model::Endpoint> endpoints, const PortLoad& load, uint64_t random) {
  size_t count = endpoints.size();
  if (count == 1) return 0;
  size_t first = static_cast<size_t>((random & 0xffffffff) % count);
  size_t second = static_cast<size_t>((random >> 32) % (count - 1));
  if (second >= first) ++second;
  return load.open_to(endpoints[second]) < load.open_to(endpoints[first]) ? second : first;
}

}  // namespace nodemesh::upstream

// A load-balancing policy chooses one of a port's usable endpoints. Pure: what it may look at comes in, an
// index goes out. One file per policy and one line in registry.cc. Worker thread only, since the loads are
// the worker's.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <unordered_map>

#include "base/addr.h"
#include "model/service.h"

namespace nodemesh::upstream {

// What one worker remembers of one Service port.
struct PortLoad {
  uint64_t picks = 0;                           // made so far, for round robin
  std::unordered_map<SockAddr, uint32_t> open;  // connections by endpoint; absent = 0
  uint32_t open_to(const model::Endpoint& endpoint) const {
    auto found = open.find(endpoint.target());
    return found == open.end() ? 0 : found->second;
  }
};

// `endpoints` is not empty; `random` is uniform over 64 bits. Returns an index into `endpoints`.
using LbFunction = size_t (*)(std::span<const model::Endpoint> endpoints, const PortLoad& load,
                              uint64_t random);

size_t least_request(std::span<const model::Endpoint> endpoints, const PortLoad& load, uint64_t random);
size_t round_robin(std::span<const model::Endpoint> endpoints, const PortLoad& load, uint64_t random);
size_t random_choice(std::span<const model::Endpoint> endpoints, const PortLoad& load, uint64_t random);

LbFunction lb_function(model::LbPolicy policy);
// All of them, for the test that holds every policy to the same rules.
std::span<const model::LbPolicy> lb_policies();

}  // namespace nodemesh::upstream

#include <array>

#include "upstream/lb/policy.h"

namespace nodemesh::upstream {
namespace {

constexpr std::array kPolicies = {model::LbPolicy::least_request, model::LbPolicy::round_robin,
                                  model::LbPolicy::random};
constexpr std::array<LbFunction, kPolicies.size()> kFunctions = {least_request, round_robin, random_choice};

}  // namespace

LbFunction lb_function(model::LbPolicy policy) {
  for (size_t i = 0; i < kPolicies.size(); ++i) {
    if (kPolicies[i] == policy) return kFunctions[i];
  }
  return least_request;
}

std::span<const model::LbPolicy> lb_policies() {
  return kPolicies;
}

}  // namespace nodemesh::upstream

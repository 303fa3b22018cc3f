#include "controller/issuer.h"

#include <algorithm>

#include "base/log.h"
#include "identity/csr.h"

namespace nodemesh::controller {
namespace {

constexpr int64_t kLongest = 3650LL * 24 * 3600;

std::unexpected<Issuer::Refusal> refuse(const Issuer::Request& request, const std::string& why,
                                        Issuer::Refusal refusal) {
  log::warn(log::Component::controller, "certificate refused",
            {{"identity", request.impersonated_identity.substr(0, 300)}, {"why", why}});
  return std::unexpected(refusal);
}

}  // namespace

std::expected<std::vector<std::string>, Issuer::Refusal> Issuer::issue(const Caller& caller,
                                                                       const Request& request) const {
  auto id = tls::SpiffeId::parse(request.impersonated_identity);
  if (!id) return refuse(request, id.error().message, Refusal::unauthenticated);
  if (id->trust_domain != authority_.trust_domain()) {
    return refuse(request, "the trust domain is not " + authority_.trust_domain(), Refusal::unauthenticated);
  }
  if (auto allowed = authorizer_.authorize(caller, *id); !allowed) {
    return refuse(request, allowed.error().message, Refusal::unauthenticated);
  }
  if (request.lifetime_seconds < 0)
    return refuse(request, "validity_duration is negative", Refusal::invalid_request);
  auto key = identity::key_of_csr(request.csr);
  if (!key) return refuse(request, key.error().message, Refusal::invalid_request);
  auto signed_leaf = authority_.sign(key->get(), *id, seconds(std::min(request.lifetime_seconds, kLongest)));
  if (!signed_leaf) return refuse(request, signed_leaf.error().message, Refusal::internal);
  log::info(log::Component::controller, "certificate issued",
            {{"identity", id->uri()},
             {"serial", signed_leaf->serial},
             {"not_after", WallClock::to_time_t(signed_leaf->not_after)}});
  return std::move(signed_leaf->chain);
}

}  // namespace nodemesh::controller

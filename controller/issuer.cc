#include "controller/issuer.h"

#include <algorithm>

#include "base/log.h"
#include "identity/csr.h"

namespace nodemesh::controller {
namespace {

constexpr int64_t kLongest = 3650LL * 24 * 3600;
constexpr int kLogPerSecond = 20;  // refusals: whoever asks in a loop shall not fill the log

}  // namespace

std::string_view name(Refusal refusal) {
  static constexpr std::string_view kNames[] = {
      "no_token",        "token_rejected",  "token_not_of_pod", "caller_pod_unknown",
      "not_an_agent",    "no_pod_on_node",  "identity_invalid", "foreign_trust_domain",
      "request_invalid", "api_unavailable", "overloaded",       "internal"};
  static_assert(std::size(kNames) == static_cast<size_t>(Refusal::count));
  return kNames[static_cast<size_t>(refusal)];
}

void Issuer::issue(Caller caller, Request request, Done done) {
  std::optional<tls::SpiffeId> asked;
  if (!request.impersonated_identity.empty()) {
    auto id = tls::SpiffeId::parse(request.impersonated_identity);
    if (!id) return refuse(caller, request, {Refusal::identity_invalid, id.error().message}, std::move(done));
    if (id->trust_domain != authority_.trust_domain()) {
      return refuse(caller, request,
                    {Refusal::foreign_trust_domain, "the trust domain is not " + authority_.trust_domain()},
                    std::move(done));
    }
    asked = std::move(*id);
  }
  Caller who = caller;
  authorizer_.authorize(who, asked,
                        [this, alive = std::weak_ptr<bool>(alive_), caller = std::move(caller),
                         request = std::move(request), done = std::move(done)](auto verdict) mutable {
                          if (!alive.expired()) finish(caller, request, std::move(verdict), std::move(done));
                        });
}

void Issuer::finish(const Caller& caller, const Request& request, Authorizer::Verdict verdict, Done done) {
  if (!verdict) return refuse(caller, request, verdict.error(), std::move(done));
  auto certificate = sign(*verdict, request);
  if (!certificate) return refuse(caller, request, certificate.error(), std::move(done));
  ++counters_.issued;
  log::info(log::Component::controller, "certificate issued",
            {{"identity", verdict->uri()},
             {"serial", certificate->serial},
             {"not_after", WallClock::to_time_t(certificate->not_after)},
             {"peer", caller.peer}});
  done(std::move(certificate->chain));
}

Issuer::Signed Issuer::sign(const tls::SpiffeId& id, const Request& request) const {
  if (request.lifetime_seconds < 0) return refused(Refusal::request_invalid, "validity_duration is negative");
  auto key = identity::key_of_csr(request.csr);
  if (!key) return refused(Refusal::request_invalid, key.error().message);
  auto certificate = authority_.sign(key->get(), id, seconds(std::min(request.lifetime_seconds, kLongest)));
  if (!certificate) return refused(Refusal::internal, certificate.error().message);
  return std::move(*certificate);
}

void Issuer::refuse(const Caller& caller, const Request& request, const Refused& why, Done done) {
  ++counters_.refused[static_cast<size_t>(why.refusal)];
  on_refused_(why);
  if (may_log()) {
    log::warn(log::Component::controller, "certificate refused",
              {{"identity", request.impersonated_identity.substr(0, 300)},
               {"peer", caller.peer},
               {"reason", name(why.refusal)},
               {"why", why.why.substr(0, 1000)}});
  } else {
    ++counters_.unlogged;
  }
  done(std::unexpected(why.refusal));
}

bool Issuer::may_log() {
  auto now = clock_.now();
  if (now - log_window_ >= seconds(1)) {
    log_window_ = now;
    logged_ = 0;
  }
  return logged_++ < kLogPerSecond;
}

}  // namespace nodemesh::controller

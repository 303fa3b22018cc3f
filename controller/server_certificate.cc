#include "controller/server_certificate.h"

#include <algorithm>

#include "base/log.h"
#include "controller/tls_front.h"

namespace nodemesh::controller {
namespace {

constexpr auto kLookAgain = std::chrono::hours(1);
constexpr auto kAfterFailure = seconds(5);

}  // namespace

void ServerCertificate::refresh() {
  if (authority_.signer() == nullptr) return;
  auto now = clock_.wall();
  if (authority_.signer() == signer_ && context_ && now < renew_at_) {
    return timer_.arm(reactor_, std::chrono::ceil<milliseconds>(
                                    std::min<WallClock::duration>(renew_at_ - now, kLookAgain)));
  }
  if (auto renewed = renew(); !renewed) {
    log::error(log::Component::controller, "no server certificate", {{"error", renewed.error().message}});
    return timer_.arm(reactor_, kAfterFailure);
  }
  timer_.arm(reactor_, std::chrono::ceil<milliseconds>(
                           std::clamp<WallClock::duration>(renew_at_ - now, seconds(1), kLookAgain)));
}

Result<> ServerCertificate::renew() {
  auto key = tls::make_p256_key();
  if (!key) return std::unexpected(key.error());
  auto certificate = authority_.sign_server(key->get(), dns_names_);
  if (!certificate) return std::unexpected(certificate.error());
  certificate->chain.pop_back();  // the roots: a peer trusts only its own copy
  auto context = make_server_context(key->get(), certificate->chain);
  if (!context) return std::unexpected(context.error());
  context_ = std::move(*context);
  signer_ = authority_.signer();
  not_after_ = certificate->not_after;
  renew_at_ = clock_.wall() + (not_after_ - clock_.wall()) / 2;
  log::info(log::Component::controller, "server certificate issued",
            {{"serial", certificate->serial}, {"not_after", WallClock::to_time_t(not_after_)}});
  return {};
}

SSL_CTX* ServerCertificate::context() const {
  return context_ && clock_.wall() < not_after_ ? context_.get() : nullptr;
}

std::vector<std::string> service_names(const std::string& service, const std::string& ns,
                                       const std::string& cluster_domain) {
  std::string full = service + "." + ns + ".svc";
  return {full, full + "." + cluster_domain, service + "." + ns, service};
}

}  // namespace nodemesh::controller

#include "controller/ca.h"

#include <openssl/x509v3.h>

#include <algorithm>

#include <fmt/format.h>

#include "controller/x509_build.h"

namespace nodemesh::controller {

void CertificateAuthority::use(std::shared_ptr<const Signer> signer, std::string trust_bundle_pem) {
  signer_ = std::move(signer);
  trust_bundle_pem_ = std::move(trust_bundle_pem);
}

Result<CertificateAuthority::Certificate> CertificateAuthority::sign(EVP_PKEY* key, const tls::SpiffeId& id,
                                                                     seconds lifetime) const {
  return issue(key, {.uris = {id.uri()}, .dns = {}}, "serverAuth,clientAuth", lifetime);
}

Result<CertificateAuthority::Certificate> CertificateAuthority::sign_server(
    EVP_PKEY* key, const std::vector<std::string>& dns_names) const {
  return issue(key, {.uris = {}, .dns = dns_names}, "serverAuth", seconds(0));
}

Result<CertificateAuthority::Certificate> CertificateAuthority::issue(EVP_PKEY* key,
                                                                      const SubjectNames& names,
                                                                      const char* usages,
                                                                      seconds lifetime) const {
  auto now = clock_.wall();
  if (signer_ == nullptr) return fail("there is no signing certificate yet");
  if (now >= signer_->not_after()) return fail("the signing certificate or its root has expired");
  seconds wanted = lifetime.count() == 0 ? settings_.max_lifetime
                                         : std::clamp(lifetime, seconds(1), settings_.max_lifetime);
  auto until = std::min<WallClock::time_point>(now + wanted, signer_->not_after());
  auto from = std::max<WallClock::time_point>(now - kBackdate, signer_->not_before());
  X509* issuer = signer_->certificate();
  tls::X509Ptr leaf(X509_new());
  X509* raw = leaf.get();
  bool ok =
      raw != nullptr && X509_set_version(raw, 2) == 1 && set_serial(raw) && set_times(raw, from, until) &&
      X509_set_issuer_name(raw, X509_get_subject_name(issuer)) == 1 && X509_set_pubkey(raw, key) == 1 &&
      add_extension(raw, issuer, NID_basic_constraints, "critical,CA:FALSE") &&
      add_extension(raw, issuer, NID_key_usage, "critical,digitalSignature,keyEncipherment") &&
      add_extension(raw, issuer, NID_ext_key_usage, usages) &&
      // A plugged-in CA certificate need not have a subject key identifier (RFC 5280 4.2.1.2 wants one).
      (X509_get0_subject_key_id(issuer) == nullptr ||
       add_extension(raw, issuer, NID_authority_key_identifier, "keyid")) &&
      add_subject_names(raw, names) && X509_sign(raw, signer_->key(), EVP_sha256()) > 0;
  if (!ok) {
    return fail(fmt::format("cannot sign the certificate of {}: {}",
                            names.uris.empty() ? names.dns.front() : names.uris.front(),
                            tls::take_openssl_error()));
  }
  Certificate out{{tls::to_pem(raw)}, tls::serial_of(raw), until};
  out.chain.insert(out.chain.end(), signer_->intermediates().begin(), signer_->intermediates().end());
  out.chain.push_back(trust_bundle_pem_);
  return out;
}

Result<> check_trust_domain(const std::string& trust_domain) {
  if (tls::SpiffeId::parse("spiffe://" + trust_domain + "/ns/a/sa/a")) return {};
  return fail("--trust-domain \"" + trust_domain + "\" may hold only a-z 0-9 . _ -");
}

}  // namespace nodemesh::controller

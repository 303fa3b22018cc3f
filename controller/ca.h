// The certificate authority: signs workload and server certificates with the signer it was given last, and
// says what peers are to trust. Knows nothing of who asks (that is Issuer's) nor of where its key is kept (a
// state directory or a Secret). Controller's main thread only.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/reason.h"
#include "controller/signer.h"
#include "tls/openssl.h"
#include "tls/spiffe.h"

namespace nodemesh::controller {

struct SubjectNames;

class CertificateAuthority {
 public:
  struct Settings {
    std::string trust_domain = "cluster.local";
    seconds max_lifetime{24 * 3600};
  };
  // `clock` outlives the authority, which refuses to sign until use().
  CertificateAuthority(const Clock& clock, Settings settings)
      : clock_(clock), settings_(std::move(settings)) {}

  // From now on. `trust_bundle_pem` holds at least the signer's root.
  void use(std::shared_ptr<const Signer> signer, std::string trust_bundle_pem);
  bool ready() const { return signer_ != nullptr && clock_.wall() < signer_->not_after(); }

  struct Certificate {
    std::vector<std::string> chain;  // PEM: leaf, intermediates one by one, then all roots in one element
    std::string serial;
    WallClock::time_point not_after;
  };
  // Signs `key` for `id`. `lifetime` zero: the maximum; it is clamped to the maximum and to the signer's end.
  Result<Certificate> sign(EVP_PKEY* key, const tls::SpiffeId& id, seconds lifetime) const;
  // For a server of these DNS names, with the longest lifetime.
  Result<Certificate> sign_server(EVP_PKEY* key, const std::vector<std::string>& dns_names) const;

  const std::string& trust_bundle_pem() const { return trust_bundle_pem_; }
  const std::string& trust_domain() const { return settings_.trust_domain; }
  // Null before use().
  const std::shared_ptr<const Signer>& signer() const { return signer_; }

 private:
  Result<Certificate> issue(EVP_PKEY* key, const SubjectNames& names, const char* usages,
                            seconds lifetime) const;
  const Clock& clock_;
  const Settings settings_;
  std::shared_ptr<const Signer> signer_;
  std::string trust_bundle_pem_;
};

// A sentence for --trust-domain where it is no trust domain (SPIFFE-ID 2.1).
Result<> check_trust_domain(const std::string& trust_domain);

}  // namespace nodemesh::controller

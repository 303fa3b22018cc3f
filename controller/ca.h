// The certificate authority: one ECDSA P-256 root, made at the first start and kept in a state directory that
// only its owner may read, and the signing of workload certificates. Knows nothing of who asks: that is
// Issuer's. Controller's main thread only.
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/fd.h"
#include "base/reason.h"
#include "tls/openssl.h"
#include "tls/spiffe.h"

namespace nodemesh::controller {

class CertificateAuthority {
 public:
  struct Settings {
    std::string state_dir;
    std::string trust_domain = "cluster.local";
    seconds max_lifetime{24 * 3600};
    seconds root_lifetime{3650LL * 24 * 3600};
  };
  // Reads the root, or makes one where the directory is empty. Refuses, in one sentence that names the fix: a
  // state directory or file that others may read, a second process on it, a key and certificate that do not
  // fit, an expired root.
  static Result<std::unique_ptr<CertificateAuthority>> open(const Clock& clock, Settings settings);

  struct Certificate {
    std::vector<std::string> chain;  // PEM, leaf first, root last
    std::string serial;
    WallClock::time_point not_after;
  };
  // Signs `key` for `id`. `lifetime` zero: the maximum; it is clamped to the maximum and to the root's end.
  Result<Certificate> sign(EVP_PKEY* key, const tls::SpiffeId& id, seconds lifetime) const;

  const std::string& root_pem() const { return root_pem_; }
  const std::string& trust_domain() const { return settings_.trust_domain; }
  WallClock::time_point root_not_after() const { return root_not_after_; }

 private:
  CertificateAuthority(const Clock& clock, Settings settings)
      : clock_(clock), settings_(std::move(settings)) {}
  Result<> make_root();
  Result<> adopt_root(std::string_view pem);

  const Clock& clock_;
  Settings settings_;
  Fd directory_;  // holds the lock
  tls::PkeyPtr key_;
  tls::X509Ptr root_;
  std::string root_pem_;
  WallClock::time_point root_not_before_, root_not_after_;
};

}  // namespace nodemesh::controller

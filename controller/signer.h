// What an authority signs with: one CA certificate, its key, the intermediates up to a root and the roots. A
// CaMaterial is PEM as somebody gave it, hostile until Signer::load has checked it; a Signer is immutable and
// may be shared. Any thread.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/reason.h"
#include "tls/openssl.h"

namespace nodemesh::controller {

// The four files of Istio's Secret `cacerts`.
struct CaMaterial {
  std::string cert_pem;   // ca-cert.pem: signs leaves
  std::string key_pem;    // ca-key.pem: secret
  std::string chain_pem;  // cert-chain.pem: intermediates between it and a root; may be empty or repeat both
  std::string roots_pem;  // root-cert.pem: one or more

  bool operator==(const CaMaterial&) const = default;
};

class Signer {
 public:
  // Refuses, naming the file and the fix: what does not parse, a key that is not ECDSA P-256 or P-384 or RSA
  // of at least 2048 bits, a key of another certificate, a certificate that may not sign, one that no root
  // vouches for at `now`.
  static Result<std::shared_ptr<const Signer>> load(const CaMaterial& material, WallClock::time_point now);

  const CaMaterial& material() const { return material_; }
  EVP_PKEY* key() const { return key_.get(); }
  X509* certificate() const { return certificate_.get(); }
  // PEM, the signing certificate first unless it is a root itself, without the root.
  const std::vector<std::string>& intermediates() const { return intermediates_; }
  const std::string& roots_pem() const { return roots_pem_; }    // normalised, as given, duplicates out
  const std::string& anchor_pem() const { return anchor_pem_; }  // the root that vouches for the signer
  WallClock::time_point not_before() const { return not_before_; }
  WallClock::time_point not_after() const { return not_after_; }  // the earliest of its chain, root included

 private:
  Signer() = default;
  Result<> verify(STACK_OF(X509) * untrusted, const std::vector<tls::X509Ptr>& roots,
                  WallClock::time_point now);
  CaMaterial material_;
  tls::PkeyPtr key_;
  tls::X509Ptr certificate_;
  std::vector<std::string> intermediates_;
  std::string roots_pem_, anchor_pem_;
  WallClock::time_point not_before_, not_after_;
};

// A new self-signed ECDSA P-256 root. Two roots of one trust domain differ in name.
Result<CaMaterial> make_root(const std::string& trust_domain, seconds lifetime, WallClock::time_point now);

// The certificates of both, each once, those of `first` first. What does not parse is left out.
std::string join_roots(std::string_view first, std::string_view second);
// Is each certificate of `part` among those of `whole`?
bool holds_roots(std::string_view whole, std::string_view part);

}  // namespace nodemesh::controller

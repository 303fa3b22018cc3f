// What a workload proves its identity with (Credential: key, certificate chain) and what it trusts
// (TrustBundle: roots). Both are immutable and published as shared_ptr<const>; built on the control thread,
// used by every worker.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "base/clock.h"
#include "base/reason.h"
#include "tls/openssl.h"
#include "tls/spiffe.h"

namespace nodemesh::tls {

class Credential {
 public:
  // `key_pem`: one unencrypted private key (ECDSA P-256, or RSA of at least 2048 bits from a foreign CA's
  // tooling). `chain_pem`: leaf first, then intermediates; self-signed roots at the end are left out of what
  // is sent, since a peer trusts only its own copy. Errors name the part that is wrong: no PEM block, key and
  // leaf differ, no or more than one SPIFFE id, not_after before not_before.
  static Result<std::shared_ptr<const Credential>> from_pem(std::string_view key_pem,
                                                            std::string_view chain_pem);

  const SpiffeId& id() const { return id_; }
  const std::string& uri() const { return uri_; }
  // Hexadecimal, lower case, as the CA's log writes it.
  const std::string& serial() const { return serial_; }
  WallClock::time_point not_before() const { return not_before_; }
  WallClock::time_point not_after() const { return not_after_; }  // the earliest of the chain's
  bool valid_at(WallClock::time_point when) const { return when >= not_before_ && when < not_after_; }

  // Borrowed for the life of the credential; OpenSSL takes its own references.
  // What binds a session ticket to the identity that issued it: SHA-256 of uri().
  const std::array<uint8_t, 32>& session_context() const { return session_context_; }
  X509* leaf() const { return leaf_.get(); }
  EVP_PKEY* key() const { return key_.get(); }
  STACK_OF(X509) * intermediates() const { return intermediates_.get(); }  // null when there are none

  // The same material again, for the vault. The key is secret: never logged, never sent.
  std::string key_pem() const;
  std::string chain_pem() const;

 private:
  Credential() = default;
  PkeyPtr key_;
  X509Ptr leaf_;
  X509StackPtr intermediates_;
  SpiffeId id_;
  std::string uri_, serial_;
  std::array<uint8_t, 32> session_context_{};
  WallClock::time_point not_before_, not_after_;
};

// The roots that peers' chains must end in. `generation` is a hash of the set: verified chains and resumption
// secrets of another generation count no more, and the same roots after a restart are the same generation.
class TrustBundle {
 public:
  // One or more certificates; an expired one is kept (it simply verifies nothing), garbage is an error.
  static Result<std::shared_ptr<const TrustBundle>> from_pem(std::string_view roots_pem);

  X509_STORE* store() const { return store_.get(); }
  uint64_t generation() const { return generation_; }
  const std::string& pem() const { return pem_; }  // normalised, without duplicates
  size_t size() const { return size_; }

 private:
  TrustBundle() = default;
  StorePtr store_;
  uint64_t generation_ = 0;
  std::string pem_;
  size_t size_ = 0;
};

}  // namespace nodemesh::tls

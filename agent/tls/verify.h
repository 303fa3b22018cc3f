// Decides whether a peer's certificate chain proves a SPIFFE identity of our mesh. One Verifier per worker:
// it remembers verified leaves by hash, since an ECDSA chain verification costs as much as the rest of a
// handshake. What it remembers is bounded, belongs to one trust generation, and is checked against the clock
// at each use.
#pragma once

#include <array>
#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/reason.h"
#include "tls/credential.h"
#include "tls/library.h"
#include "tls/openssl.h"
#include "tls/spiffe.h"

namespace nodemesh::tls {

enum class PeerRole { client, server };  // what the peer is

struct PeerIdentity {
  SpiffeId id;
  std::string uri;
  WallClock::time_point not_before, not_after;  // of the whole verified chain: the narrowest
  uint64_t trust_generation = 0;
};

// The identity in a certificate: exactly one URI name in the SAN, in SPIFFE form, compared by its ASN.1
// length (so a NUL is refused, never a terminator). Does not verify anything else. PEER_ID_INVALID otherwise.
Result<SpiffeId> identity_in(X509* leaf);

class Verifier {
 public:
  // `clock` outlives the verifier. `trust_domains`: ours first, then aliases; peers of any of them are ours.
  Verifier(const Clock& clock, std::vector<std::string> trust_domains, size_t cache_entries = 4096);
  Verifier(const Verifier&) = delete;
  Verifier& operator=(const Verifier&) = delete;

  // Both forget every verified chain that the old value allowed. Without a bundle nobody is trusted.
  void set_trust(std::shared_ptr<const TrustBundle> trust);
  void set_trust_domains(std::vector<std::string> trust_domains);
  const TrustBundle* trust() const { return trust_.get(); }
  uint64_t generation() const { return generation_; }
  WallClock::time_point now() const { return clock_.wall(); }
  // The OpenSSL context in which peers' certificates are parsed; null: OpenSSL's default, if ours could not
  // be made.
  OSSL_LIB_CTX* library() const { return library_ ? library_->get() : nullptr; }
  bool is_our_domain(const std::string& trust_domain) const;

  // `leaf` and `chain` (may be null) as the peer sent them. Errors: PEER_CERT_MISSING, PEER_CERT_INVALID
  // (with OpenSSL's words), PEER_ID_INVALID, TRUST_DOMAIN.
  Result<std::shared_ptr<const PeerIdentity>> verify(X509* leaf, STACK_OF(X509) * chain, PeerRole role);
  // For an open connection whose peer was verified as `known`: do the roots of now vouch for it? A connection
  // may outlive its certificate: where that has run out, it is judged as of its last second. Remembers
  // nothing. Errors as verify().
  Result<> verify_again(const PeerIdentity& known, X509* leaf, STACK_OF(X509) * chain, PeerRole role);
  // An identity verified earlier, at resumption: is it still one of ours, in time and of this generation?
  Result<> still_valid(const PeerIdentity& peer) const;

  struct Counters {
    uint64_t cached = 0, verified = 0, refused = 0;
  };
  const Counters& counters() const { return counters_; }

 private:
  using Hash = std::array<uint8_t, 33>;  // SHA-256 of the leaf, then the role
  struct Entry {
    std::shared_ptr<const PeerIdentity> peer;
    std::list<const Hash*>::iterator age;
  };
  Result<std::shared_ptr<const PeerIdentity>> verify_chain(X509* leaf, STACK_OF(X509) * chain, PeerRole role,
                                                           WallClock::time_point at);
  Result<> check_domain(const SpiffeId& id) const;
  void forget();
  bool hash_leaf(X509* leaf, PeerRole role, Hash& out);
  void remember(const Hash& hash, std::shared_ptr<const PeerIdentity> peer);

  const Clock& clock_;
  std::unique_ptr<Library> library_;  // first: what was made with it goes before it
  std::vector<std::string> trust_domains_;
  std::shared_ptr<const TrustBundle> trust_;
  uint64_t generation_ = 0;
  size_t cache_entries_;
  std::map<Hash, Entry> cache_;
  std::list<const Hash*> oldest_first_;
  MdPtr sha256_;
  MdCtxPtr digest_;
  StoreCtxPtr store_ctx_;
  Counters counters_;
};

}  // namespace nodemesh::tls

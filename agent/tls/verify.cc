#include "tls/verify.h"

#include <openssl/err.h>
#include <openssl/x509v3.h>

#include <algorithm>

#include <fmt/format.h>

namespace nodemesh::tls {
namespace {

using NamesPtr = std::unique_ptr<GENERAL_NAMES, Freed<GENERAL_NAMES_free>>;

// Narrows [from, until) to the validity of `certificate`.
Result<> narrow(X509* certificate, WallClock::time_point& from, WallClock::time_point& until) {
  auto begin = to_time(X509_get0_notBefore(certificate)), end = to_time(X509_get0_notAfter(certificate));
  if (!begin || !end)
    return fail(Reason::PEER_CERT_INVALID, "the peer's certificate has a validity that does not parse");
  from = std::max(from, *begin);
  until = std::min(until, *end);
  return {};
}

// Keys that a mesh peer may use: ECDSA on a NIST curve, or RSA of at least 2048 bits (Istio's sidecars).
Result<> check_leaf_key(X509* leaf) {
  EVP_PKEY* key = X509_get0_pubkey(leaf);
  if (key == nullptr) {
    return fail(Reason::PEER_CERT_INVALID, "the peer's public key does not parse: " + take_openssl_error());
  }
  int bits = EVP_PKEY_get_bits(key);
  if ((EVP_PKEY_is_a(key, "EC") && bits >= 256) || (EVP_PKEY_is_a(key, "RSA") && bits >= 2048)) return {};
  const char* type = EVP_PKEY_get0_type_name(key);
  return fail(Reason::PEER_CERT_INVALID,
              fmt::format("the peer's key, {} of {} bits, is not accepted", type ? type : "unknown", bits));
}

}  // namespace

Result<SpiffeId> identity_in(X509* leaf) {
  int critical = 0;
  NamesPtr names(
      static_cast<GENERAL_NAMES*>(X509_get_ext_d2i(leaf, NID_subject_alt_name, &critical, nullptr)));
  if (!names) {
    ERR_clear_error();
    // -1: absent; -2: there twice, which one reader would resolve to the first and another to the last.
    return fail(Reason::PEER_ID_INVALID, critical == -1
                                             ? "the certificate has no subject alternative name"
                                             : "the certificate's subject alternative names do not parse");
  }
  const ASN1_IA5STRING* uri = nullptr;
  for (int i = 0; i < sk_GENERAL_NAME_num(names.get()); ++i) {
    const GENERAL_NAME* name = sk_GENERAL_NAME_value(names.get(), i);
    if (name->type != GEN_URI) continue;
    if (uri != nullptr) return fail(Reason::PEER_ID_INVALID, "the certificate has more than one URI name");
    uri = name->d.uniformResourceIdentifier;
  }
  if (uri == nullptr) return fail(Reason::PEER_ID_INVALID, "the certificate has no URI name");
  return SpiffeId::parse({reinterpret_cast<const char*>(ASN1_STRING_get0_data(uri)),
                          static_cast<size_t>(ASN1_STRING_length(uri))});
}

Verifier::Verifier(const Clock& clock, std::vector<std::string> trust_domains, size_t cache_entries)
    : clock_(clock),
      library_(Library::create().value_or(nullptr)),
      trust_domains_(std::move(trust_domains)),
      cache_entries_(std::max<size_t>(cache_entries, 1)),
      sha256_(EVP_MD_fetch(nullptr, "SHA256", nullptr)),
      digest_(EVP_MD_CTX_new()),
      store_ctx_(X509_STORE_CTX_new()) {}

void Verifier::set_trust(std::shared_ptr<const TrustBundle> trust) {
  trust_ = std::move(trust);
  generation_ = trust_ ? trust_->generation() : 0;
  forget();
}

void Verifier::set_trust_domains(std::vector<std::string> trust_domains) {
  trust_domains_ = std::move(trust_domains);
  forget();
}

void Verifier::forget() {
  oldest_first_.clear();
  cache_.clear();
}

bool Verifier::is_our_domain(const std::string& trust_domain) const {
  return std::ranges::find(trust_domains_, trust_domain) != trust_domains_.end();
}

Result<> Verifier::check_domain(const SpiffeId& id) const {
  if (is_our_domain(id.trust_domain)) return {};
  return fail(Reason::TRUST_DOMAIN, fmt::format("the peer is {}; our trust domain is {}", id.uri(),
                                                trust_domains_.empty() ? "not set" : trust_domains_.front()));
}

bool Verifier::hash_leaf(X509* leaf, PeerRole role, Hash& out) {
  unsigned char* der = nullptr;
  int size = i2d_X509(leaf, &der);  // a copy of the bytes that were received: X509 keeps its encoding
  if (size <= 0) return false;
  bool ok = EVP_DigestInit_ex2(digest_.get(), sha256_.get(), nullptr) == 1 &&
            EVP_DigestUpdate(digest_.get(), der, static_cast<size_t>(size)) == 1 &&
            EVP_DigestFinal_ex(digest_.get(), out.data(), nullptr) == 1;
  OPENSSL_free(der);
  out[32] = static_cast<uint8_t>(role);
  return ok;
}

void Verifier::remember(const Hash& hash, std::shared_ptr<const PeerIdentity> peer) {
  if (cache_.size() >= cache_entries_) {
    cache_.erase(*oldest_first_.front());
    oldest_first_.pop_front();
  }
  auto [entry, added] = cache_.emplace(hash, Entry{std::move(peer), {}});
  if (added) entry->second.age = oldest_first_.insert(oldest_first_.end(), &entry->first);
}

Result<> Verifier::still_valid(const PeerIdentity& peer) const {
  auto at = clock_.wall();
  if (at >= peer.not_after)
    return fail(Reason::PEER_CERT_INVALID, "the certificate of " + peer.uri + " has expired");
  if (at < peer.not_before)
    return fail(Reason::PEER_CERT_INVALID, "the certificate of " + peer.uri + " is not yet valid");
  if (!trust_ || peer.trust_generation != generation_) {
    return fail(Reason::PEER_CERT_INVALID,
                "the roots changed since the certificate of " + peer.uri + " was verified");
  }
  return check_domain(peer.id);
}

Result<std::shared_ptr<const PeerIdentity>> Verifier::verify(X509* leaf, STACK_OF(X509) * chain,
                                                             PeerRole role) {
  if (leaf == nullptr) return fail(Reason::PEER_CERT_MISSING, "the peer presented no certificate");
  if (!trust_) return fail(Reason::PEER_CERT_INVALID, "no trust bundle is known yet");
  Hash hash;
  if (!hash_leaf(leaf, role, hash))
    return fail(Reason::PEER_CERT_INVALID, "the certificate cannot be hashed");
  if (auto found = cache_.find(hash); found != cache_.end()) {
    if (still_valid(*found->second.peer)) {
      ++counters_.cached;
      return found->second.peer;
    }
    oldest_first_.erase(found->second.age);
    cache_.erase(found);
  }
  auto peer = verify_chain(leaf, chain, role, clock_.wall());
  if (!peer) {
    ++counters_.refused;
    return peer;
  }
  ++counters_.verified;
  remember(hash, *peer);
  return peer;
}

Result<> Verifier::verify_again(const PeerIdentity& known, X509* leaf, STACK_OF(X509) * chain,
                                PeerRole role) {
  if (leaf == nullptr) return fail(Reason::PEER_CERT_MISSING, "the peer presented no certificate");
  if (!trust_) return fail(Reason::PEER_CERT_INVALID, "no trust bundle is known");
  auto peer = verify_chain(leaf, chain, role, std::min(clock_.wall(), known.not_after - seconds(1)));
  if (!peer) return std::unexpected(peer.error());
  return {};
}

Result<std::shared_ptr<const PeerIdentity>> Verifier::verify_chain(X509* leaf, STACK_OF(X509) * chain,
                                                                   PeerRole role, WallClock::time_point at) {
  if (auto key = check_leaf_key(leaf); !key) return std::unexpected(key.error());
  X509_STORE_CTX* ctx = store_ctx_.get();
  if (X509_STORE_CTX_init(ctx, trust_->store(), leaf, chain) != 1) {
    return fail(Reason::PEER_CERT_INVALID, "verification could not start: " + take_openssl_error());
  }
  X509_STORE_CTX_set_default(ctx, role == PeerRole::client ? "ssl_client" : "ssl_server");
  X509_VERIFY_PARAM* param = X509_STORE_CTX_get0_param(ctx);
  X509_VERIFY_PARAM_set_time(param, WallClock::to_time_t(at));
  X509_VERIFY_PARAM_set_depth(param, 8);
  X509_VERIFY_PARAM_set_auth_level(param, 2);  // 112 bits: no SHA-1, no RSA below 2048, anywhere in the chain
  bool ok = X509_verify_cert(ctx) == 1;
  auto peer = std::make_shared<PeerIdentity>();
  peer->not_before = WallClock::time_point::min();
  peer->not_after = WallClock::time_point::max();
  Result<> narrowed;
  if (ok) {
    STACK_OF(X509)* verified = X509_STORE_CTX_get0_chain(ctx);
    for (int i = 0; i < sk_X509_num(verified) && narrowed; ++i) {
      narrowed = narrow(sk_X509_value(verified, i), peer->not_before, peer->not_after);
    }
  }
  std::string why = ok ? "" : X509_verify_cert_error_string(X509_STORE_CTX_get_error(ctx));
  int depth = X509_STORE_CTX_get_error_depth(ctx);
  X509_STORE_CTX_cleanup(ctx);
  ERR_clear_error();
  if (!ok)
    return fail(Reason::PEER_CERT_INVALID,
                fmt::format("the peer's certificate does not verify: {} (depth {})", why, depth));
  if (!narrowed) return std::unexpected(narrowed.error());
  // A root pinned past our clock's range or a leaf inside its last second still needs a later re-check:
  // still_valid.
  auto id = identity_in(leaf);
  if (!id) return std::unexpected(id.error());
  if (auto ours = check_domain(*id); !ours) return std::unexpected(ours.error());
  peer->uri = id->uri();
  peer->id = std::move(*id);
  peer->trust_generation = generation_;
  return peer;
}

}  // namespace nodemesh::tls

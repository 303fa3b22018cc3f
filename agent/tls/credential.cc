#include "tls/credential.h"

#include <openssl/x509v3.h>

#include <cstring>
#include <set>

#include <fmt/format.h>

#include "tls/verify.h"

namespace nodemesh::tls {
namespace {

bool self_signed(X509* certificate) {
  return X509_self_signed(certificate, 0) == 1;
}

Result<> check_key_type(EVP_PKEY* key) {
  int bits = EVP_PKEY_get_bits(key);
  if (EVP_PKEY_is_a(key, "EC") && bits >= 256) return {};
  if (EVP_PKEY_is_a(key, "RSA") && bits >= 2048) return {};
  return fail(
      fmt::format("private key: {} of {} bits is not accepted; use ECDSA P-256 or RSA of at least 2048 bits",
                  EVP_PKEY_get0_type_name(key) ? EVP_PKEY_get0_type_name(key) : "a key", bits));
}

}  // namespace

Result<std::shared_ptr<const Credential>> Credential::from_pem(std::string_view key_pem,
                                                               std::string_view chain_pem) {
  std::shared_ptr<Credential> out(new Credential);
  auto key = parse_private_key(key_pem);
  if (!key) return std::unexpected(key.error());
  if (auto checked = check_key_type(key->get()); !checked) return std::unexpected(checked.error());
  out->key_ = std::move(*key);

  auto certificates = parse_certificates(chain_pem);
  if (!certificates) return fail("certificate chain: " + certificates.error().message);
  if (certificates->empty()) return fail("certificate chain: no CERTIFICATE block");
  out->leaf_ = std::move(certificates->front());
  if (X509_check_private_key(out->leaf(), out->key()) != 1) {
    take_openssl_error();
    return fail(
        "certificate chain: the first certificate is not for this private key (the leaf must come first)");
  }
  auto id = identity_in(out->leaf());
  if (!id) return std::unexpected(id.error());
  out->id_ = std::move(*id);
  out->uri_ = out->id_.uri();
  out->session_context_ = sha256(out->uri_);
  out->serial_ = serial_of(out->leaf());

  auto from = to_time(X509_get0_notBefore(out->leaf()));
  auto until = to_time(X509_get0_notAfter(out->leaf()));
  if (!from || !until) return fail("certificate chain: the leaf's validity does not parse");
  out->not_before_ = *from;
  out->not_after_ = *until;
  for (size_t i = 1; i < certificates->size(); ++i) {
    X509Ptr& certificate = (*certificates)[i];
    if (auto end = to_time(X509_get0_notAfter(certificate.get())); end && *end < out->not_after_)
      out->not_after_ = *end;
    if (self_signed(certificate.get())) continue;
    if (!out->intermediates_) out->intermediates_.reset(sk_X509_new_null());
    sk_X509_push(out->intermediates_.get(), certificate.release());
  }
  if (out->not_after_ <= out->not_before_) return fail("certificate chain: the leaf's validity is empty");
  return out;
}

std::string Credential::key_pem() const {
  return to_pem(key());
}

std::string Credential::chain_pem() const {
  std::string out = to_pem(leaf());
  for (int i = 0; i < sk_X509_num(intermediates()); ++i) out += to_pem(sk_X509_value(intermediates(), i));
  return out;
}

Result<std::shared_ptr<const TrustBundle>> TrustBundle::from_pem(std::string_view roots_pem) {
  auto roots = parse_certificates(roots_pem);
  if (!roots) return fail("trust bundle: " + roots.error().message);
  if (roots->empty()) return fail("trust bundle: no CERTIFICATE block");
  std::shared_ptr<TrustBundle> out(new TrustBundle);
  out->store_.reset(X509_STORE_new());
  // Operators may put an intermediate into the bundle and mean it as an anchor, as other meshes allow.
  X509_STORE_set_flags(out->store(), X509_V_FLAG_PARTIAL_CHAIN);
  std::set<std::string> seen;
  for (const X509Ptr& root : *roots) {
    std::string pem = to_pem(root.get());
    if (!seen.insert(pem).second) continue;
    if (X509_STORE_add_cert(out->store(), root.get()) != 1) {
      return fail("trust bundle: a certificate was refused: " + take_openssl_error());
    }
    out->pem_ += pem;
  }
  out->size_ = seen.size();
  std::string sorted;
  for (const std::string& pem : seen) sorted += pem;
  auto digest = sha256(sorted);
  std::memcpy(&out->generation_, digest.data(), sizeof out->generation_);
  return out;
}

}  // namespace nodemesh::tls

#include "controller/signer.h"

#include <openssl/rand.h>
#include <openssl/x509v3.h>

#include <algorithm>
#include <set>

#include <fmt/format.h>

#include "controller/x509_build.h"

namespace nodemesh::controller {
namespace {

constexpr size_t kMaxCertificates = 32;  // of one file

bool self_signed(X509* certificate) {
  return X509_self_signed(certificate, 0) == 1;
}

Result<> check_key_kind(EVP_PKEY* key) {
  char group[64] = {};
  size_t size = 0;
  bool curve =
      EVP_PKEY_is_a(key, "EC") && EVP_PKEY_get_group_name(key, group, sizeof group, &size) == 1 &&
      (std::string_view(group, size) == "prime256v1" || std::string_view(group, size) == "secp384r1");
  bool rsa = EVP_PKEY_is_a(key, "RSA") && EVP_PKEY_get_bits(key) >= 2048 && EVP_PKEY_get_bits(key) <= 8192;
  if (curve || rsa) return {};
  const char* type = EVP_PKEY_get0_type_name(key);
  return fail(
      fmt::format("ca-key.pem: a key {} of {} bits is not accepted; use ECDSA P-256 or P-384, or RSA of "
                  "2048 to 8192 bits",
                  type != nullptr ? type : "unknown", EVP_PKEY_get_bits(key)));
}

Result<std::vector<tls::X509Ptr>> read_certificates(std::string_view file, std::string_view pem,
                                                    bool needed) {
  auto out = tls::parse_certificates(pem);
  if (!out) return fail(fmt::format("{}: {}", file, out.error().message));
  if (needed && out->empty()) return fail(fmt::format("{}: holds no PEM certificate", file));
  if (out->size() > kMaxCertificates)
    return fail(fmt::format("{}: {} certificates, at most {} are read", file, out->size(), kMaxCertificates));
  return out;
}

Result<> check_may_sign(X509* certificate) {
  if ((X509_get_key_usage(certificate) & KU_KEY_CERT_SIGN) == 0)
    return fail("ca-cert.pem: its key usage lacks keyCertSign; issue it with that");
  if (X509_check_ca(certificate) != 1)
    return fail("ca-cert.pem: the certificate is not a CA's (basicConstraints CA:TRUE); issue it as one");
  return {};
}

}  // namespace

Result<std::shared_ptr<const Signer>> Signer::load(const CaMaterial& material, WallClock::time_point now) {
  std::shared_ptr<Signer> out(new Signer);
  out->material_ = material;
  auto key = tls::parse_private_key(material.key_pem);
  if (!key) return fail("ca-key.pem: " + key.error().message);
  if (auto kind = check_key_kind(key->get()); !kind) return std::unexpected(kind.error());
  auto certificates = read_certificates("ca-cert.pem", material.cert_pem, true);
  if (!certificates) return std::unexpected(certificates.error());
  auto chain = read_certificates("cert-chain.pem", material.chain_pem, false);
  if (!chain) return std::unexpected(chain.error());
  auto roots = read_certificates("root-cert.pem", material.roots_pem, true);
  if (!roots) return std::unexpected(roots.error());
  out->key_ = std::move(*key);
  out->certificate_ = std::move(certificates->front());
  if (X509_check_private_key(out->certificate_.get(), out->key_.get()) != 1) {
    tls::take_openssl_error();
    return fail("ca-cert.pem: the certificate is not for the key in ca-key.pem; replace both together");
  }
  if (auto may = check_may_sign(out->certificate_.get()); !may) return std::unexpected(may.error());
  tls::X509StackPtr untrusted(sk_X509_new_null());
  for (auto* list : {&*certificates, &*chain}) {
    for (auto& one : *list) {
      if (one) sk_X509_push(untrusted.get(), one.release());
    }
  }
  if (auto verified = out->verify(untrusted.get(), *roots, now); !verified)
    return std::unexpected(verified.error());
  out->roots_pem_ = join_roots(material.roots_pem, {});
  return out;
}

// Finds the chain to a root and takes from it what is sent along and how long it lasts.
Result<> Signer::verify(STACK_OF(X509) * untrusted, const std::vector<tls::X509Ptr>& roots,
                        WallClock::time_point now) {
  tls::StorePtr store(X509_STORE_new());
  for (const auto& root : roots) X509_STORE_add_cert(store.get(), root.get());
  tls::StoreCtxPtr context(X509_STORE_CTX_new());
  X509_STORE_CTX_init(context.get(), store.get(), certificate_.get(), untrusted);
  X509_VERIFY_PARAM_set_time(X509_STORE_CTX_get0_param(context.get()), WallClock::to_time_t(now));
  bool good = X509_verify_cert(context.get()) == 1;
  int error = X509_STORE_CTX_get_error(context.get());
  tls::take_openssl_error();
  if (!good) {
    return fail(
        fmt::format("ca-cert.pem: no root of root-cert.pem vouches for it ({}); give the intermediates in "
                    "cert-chain.pem and their root in root-cert.pem",
                    X509_verify_cert_error_string(error)));
  }
  STACK_OF(X509)* chain = X509_STORE_CTX_get0_chain(context.get());
  for (int i = 0; i < sk_X509_num(chain); ++i) {
    X509* one = sk_X509_value(chain, i);
    auto from = tls::to_time(X509_get0_notBefore(one)), until = tls::to_time(X509_get0_notAfter(one));
    if (!from || !until) return fail("ca-cert.pem: the validity of its chain does not parse");
    not_before_ = i == 0 ? *from : std::max(not_before_, *from);
    not_after_ = i == 0 ? *until : std::min(not_after_, *until);
    if (i + 1 == sk_X509_num(chain)) anchor_pem_ = tls::to_pem(one);
    if (!self_signed(one)) intermediates_.push_back(tls::to_pem(one));
  }
  return {};
}

Result<CaMaterial> make_root(const std::string& trust_domain, seconds lifetime, WallClock::time_point now) {
  auto key = tls::make_p256_key();
  if (!key) return std::unexpected(key.error());
  tls::X509Ptr root(X509_new());
  X509* raw = root.get();
  const auto* domain = reinterpret_cast<const unsigned char*>(trust_domain.c_str());
  // Two roots of one trust domain must differ in name, or a peer that holds both may try the wrong one only.
  uint32_t tag = 0;
  bool ok = raw != nullptr && RAND_bytes(reinterpret_cast<unsigned char*>(&tag), sizeof tag) == 1;
  std::string name = fmt::format("nodemesh root {:08x}", tag);
  ok = ok && X509_set_version(raw, 2) == 1 && set_serial(raw) &&
       set_times(raw, now - kBackdate, now + lifetime) &&
       X509_NAME_add_entry_by_txt(X509_get_subject_name(raw), "O", MBSTRING_UTF8, domain, -1, -1, 0) == 1 &&
       X509_NAME_add_entry_by_txt(X509_get_subject_name(raw), "CN", MBSTRING_UTF8,
                                  reinterpret_cast<const unsigned char*>(name.c_str()), -1, -1, 0) == 1 &&
       X509_set_issuer_name(raw, X509_get_subject_name(raw)) == 1 && X509_set_pubkey(raw, key->get()) == 1 &&
       add_extension(raw, raw, NID_basic_constraints, "critical,CA:TRUE") &&
       add_extension(raw, raw, NID_key_usage, "critical,keyCertSign,cRLSign") &&
       add_extension(raw, raw, NID_subject_key_identifier, "hash") &&
       X509_sign(raw, key->get(), EVP_sha256()) > 0;
  if (!ok) return fail("cannot make a root certificate: " + tls::take_openssl_error());
  std::string pem = tls::to_pem(raw);
  return CaMaterial{.cert_pem = pem, .key_pem = tls::to_pem(key->get()), .chain_pem = {}, .roots_pem = pem};
}

std::string join_roots(std::string_view first, std::string_view second) {
  std::string out;
  std::set<std::string> seen;
  for (std::string_view pem : {first, second}) {
    auto certificates = tls::parse_certificates(pem);
    if (!certificates) continue;
    for (const auto& one : *certificates) {
      std::string text = tls::to_pem(one.get());
      if (seen.insert(text).second) out += text;
    }
  }
  return out;
}

bool holds_roots(std::string_view whole, std::string_view part) {
  return join_roots(whole, part).size() == join_roots(whole, {}).size();
}

}  // namespace nodemesh::controller

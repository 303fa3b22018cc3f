#include "controller/ca.h"

#include <openssl/rand.h>
#include <openssl/x509v3.h>

#include <algorithm>

#include <fmt/format.h>

#include "base/log.h"
#include "controller/state_dir.h"

namespace nodemesh::controller {
namespace {

constexpr auto kFile = "ca.pem";  // key and certificate in one file: written whole or not at all
constexpr auto kBackdate = std::chrono::minutes(2);  // clocks of nodes differ

using NamesPtr = std::unique_ptr<GENERAL_NAMES, tls::Freed<GENERAL_NAMES_free>>;
using ExtensionPtr = std::unique_ptr<X509_EXTENSION, tls::Freed<X509_EXTENSION_free>>;
using NumberPtr = std::unique_ptr<BIGNUM, tls::Freed<BN_free>>;

// 127 random bits: unique without a counter on disk, positive, at most the 20 bytes of RFC 5280 4.1.2.2.
bool set_serial(X509* certificate) {
  NumberPtr number(BN_new());
  return number && BN_rand(number.get(), 127, BN_RAND_TOP_ONE, BN_RAND_BOTTOM_ANY) == 1 &&
         BN_to_ASN1_INTEGER(number.get(), X509_get_serialNumber(certificate)) != nullptr;
}

bool add_extension(X509* certificate, X509* issuer, int nid, const char* value) {
  X509V3_CTX ctx;
  X509V3_set_ctx_nodb(&ctx);
  X509V3_set_ctx(&ctx, issuer, certificate, nullptr, nullptr, 0);
  ExtensionPtr extension(X509V3_EXT_conf_nid(nullptr, &ctx, nid, value));
  return extension && X509_add_ext(certificate, extension.get(), -1) == 1;
}

// As a value and not by configuration syntax, where a comma in a name would begin another SAN.
bool add_uri_san(X509* certificate, const std::string& uri) {
  GENERAL_NAME* name = GENERAL_NAME_new();
  ASN1_IA5STRING* text = ASN1_IA5STRING_new();
  ASN1_STRING_set(text, uri.data(), static_cast<int>(uri.size()));
  GENERAL_NAME_set0_value(name, GEN_URI, text);
  NamesPtr names(sk_GENERAL_NAME_new_null());
  sk_GENERAL_NAME_push(names.get(), name);
  return X509_add1_ext_i2d(certificate, NID_subject_alt_name, names.get(), 1, X509V3_ADD_APPEND) == 1;
}

bool set_times(X509* certificate, WallClock::time_point from, WallClock::time_point until) {
  return ASN1_TIME_set(X509_getm_notBefore(certificate), WallClock::to_time_t(from)) != nullptr &&
         ASN1_TIME_set(X509_getm_notAfter(certificate), WallClock::to_time_t(until)) != nullptr;
}

}  // namespace

Result<std::unique_ptr<CertificateAuthority>> CertificateAuthority::open(const Clock& clock,
                                                                         Settings settings) {
  if (!tls::SpiffeId::parse("spiffe://" + settings.trust_domain + "/ns/a/sa/a")) {
    return fail("--trust-domain \"" + settings.trust_domain + "\" may hold only a-z 0-9 . _ -");
  }
  std::unique_ptr<CertificateAuthority> out(new CertificateAuthority(clock, std::move(settings)));
  const std::string& path = out->settings_.state_dir;
  auto directory = open_state_dir(path);
  if (!directory) return std::unexpected(directory.error());
  out->directory_ = std::move(*directory);
  auto kept = read_secret(out->directory_, path, kFile);
  if (!kept) return std::unexpected(kept.error());
  auto ready = *kept ? out->adopt_root(**kept) : out->make_root();
  if (!ready) return std::unexpected(ready.error());
  return out;
}

Result<> CertificateAuthority::adopt_root(std::string_view pem) {
  std::string file = settings_.state_dir + "/" + kFile;
  auto key = tls::parse_private_key(pem);
  if (!key) return fail(file + ": " + key.error().message + "; restore it, or remove it to begin a new mesh");
  auto roots = tls::parse_certificates(pem);
  if (!roots) return fail(file + ": " + roots.error().message);
  if (roots->size() != 1) return fail(fmt::format("{}: {} certificates instead of one", file, roots->size()));
  if (X509_check_private_key(roots->front().get(), key->get()) != 1) {
    tls::take_openssl_error();
    return fail(file + ": the certificate is not for the key; restore the file");
  }
  auto from = tls::to_time(X509_get0_notBefore(roots->front().get()));
  auto until = tls::to_time(X509_get0_notAfter(roots->front().get()));
  if (!from || !until) return fail(file + ": the root's validity does not parse");
  if (clock_.wall() >= *until)
    return fail(file + ": the root has expired; remove the file to begin a new mesh");
  key_ = std::move(*key);
  root_ = std::move(roots->front());
  root_pem_ = tls::to_pem(root_.get());
  root_not_before_ = *from;
  root_not_after_ = *until;
  return {};
}

Result<> CertificateAuthority::make_root() {
  auto key = tls::make_p256_key();
  if (!key) return std::unexpected(key.error());
  tls::X509Ptr root(X509_new());
  X509* raw = root.get();
  auto now = clock_.wall();
  const auto* domain = reinterpret_cast<const unsigned char*>(settings_.trust_domain.c_str());
  // Two roots of one trust domain must differ in name, or a peer that holds both may try the wrong one only.
  uint32_t tag = 0;
  bool ok = raw != nullptr && RAND_bytes(reinterpret_cast<unsigned char*>(&tag), sizeof tag) == 1;
  std::string name = fmt::format("nodemesh root {:08x}", tag);
  ok = ok && X509_set_version(raw, 2) == 1 && set_serial(raw) &&
       set_times(raw, now - kBackdate, now + settings_.root_lifetime) &&
       X509_NAME_add_entry_by_txt(X509_get_subject_name(raw), "O", MBSTRING_UTF8, domain, -1, -1, 0) == 1 &&
       X509_NAME_add_entry_by_txt(X509_get_subject_name(raw), "CN", MBSTRING_UTF8,
                                  reinterpret_cast<const unsigned char*>(name.c_str()), -1, -1, 0) == 1 &&
       X509_set_issuer_name(raw, X509_get_subject_name(raw)) == 1 && X509_set_pubkey(raw, key->get()) == 1 &&
       add_extension(raw, raw, NID_basic_constraints, "critical,CA:TRUE") &&
       add_extension(raw, raw, NID_key_usage, "critical,keyCertSign,cRLSign") &&
       add_extension(raw, raw, NID_subject_key_identifier, "hash") &&
       X509_sign(raw, key->get(), EVP_sha256()) > 0;
  if (!ok) return fail("cannot make a root certificate: " + tls::take_openssl_error());
  std::string bytes = tls::to_pem(key->get()) + tls::to_pem(raw);
  auto written = write_secret(directory_, settings_.state_dir, kFile, bytes);
  if (!written) return written;
  log::info(log::Component::controller, "made a new root",
            {{"trust_domain", settings_.trust_domain}, {"file", settings_.state_dir + "/" + kFile}});
  return adopt_root(bytes);
}

Result<CertificateAuthority::Certificate> CertificateAuthority::sign(EVP_PKEY* key, const tls::SpiffeId& id,
                                                                     seconds lifetime) const {
  auto now = clock_.wall();
  if (now >= root_not_after_) return fail("the root certificate has expired");
  seconds wanted = lifetime.count() == 0 ? settings_.max_lifetime
                                         : std::clamp(lifetime, seconds(1), settings_.max_lifetime);
  auto until = std::min<WallClock::time_point>(now + wanted, root_not_after_);
  auto from = std::max<WallClock::time_point>(now - kBackdate, root_not_before_);
  tls::X509Ptr leaf(X509_new());
  X509* raw = leaf.get();
  // The subject stays empty, so the SAN must be critical (RFC 5280 4.2.1.6).
  bool ok =
      raw != nullptr && X509_set_version(raw, 2) == 1 && set_serial(raw) && set_times(raw, from, until) &&
      X509_set_issuer_name(raw, X509_get_subject_name(root_.get())) == 1 && X509_set_pubkey(raw, key) == 1 &&
      add_extension(raw, root_.get(), NID_basic_constraints, "critical,CA:FALSE") &&
      add_extension(raw, root_.get(), NID_key_usage, "critical,digitalSignature,keyEncipherment") &&
      add_extension(raw, root_.get(), NID_ext_key_usage, "serverAuth,clientAuth") &&
      add_extension(raw, root_.get(), NID_authority_key_identifier, "keyid") && add_uri_san(raw, id.uri()) &&
      X509_sign(raw, key_.get(), EVP_sha256()) > 0;
  if (!ok) return fail("cannot sign the certificate of " + id.uri() + ": " + tls::take_openssl_error());
  return Certificate{{tls::to_pem(raw), root_pem_}, tls::serial_of(raw), until};
}

}  // namespace nodemesh::controller

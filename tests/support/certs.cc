#include "support/certs.h"

#include <openssl/rsa.h>
#include <openssl/x509v3.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>

namespace nodemesh::test {
namespace {

using NamesPtr = std::unique_ptr<GENERAL_NAMES, tls::Freed<GENERAL_NAMES_free>>;

void must(bool ok, const char* what) {
  if (ok) return;
  std::fprintf(stderr, "test certificates: %s: %s\n", what, tls::take_openssl_error().c_str());
  std::abort();
}

tls::PkeyPtr make_key(KeyKind kind) {
  EVP_PKEY* key = nullptr;
  switch (kind) {
    case KeyKind::p256:
      key = EVP_EC_gen("P-256");
      break;
    case KeyKind::p384:
      key = EVP_EC_gen("P-384");
      break;
    case KeyKind::rsa2048:
      key = EVP_RSA_gen(2048);
      break;
    case KeyKind::rsa1024:
      key = EVP_RSA_gen(1024);
      break;
    case KeyKind::ed25519:
      key = EVP_PKEY_Q_keygen(nullptr, nullptr, "ED25519");
      break;
  }
  must(key != nullptr, "key");
  return tls::PkeyPtr(key);
}

void add_extension(X509* certificate, int nid, const char* value) {
  X509V3_CTX ctx;
  X509V3_set_ctx_nodb(&ctx);
  X509V3_set_ctx(&ctx, certificate, certificate, nullptr, nullptr, 0);
  X509_EXTENSION* extension = X509V3_EXT_conf_nid(nullptr, &ctx, nid, value);
  must(extension != nullptr && X509_add_ext(certificate, extension, -1) == 1, "extension");
  X509_EXTENSION_free(extension);
}

tls::X509Ptr blank(EVP_PKEY* key, WallClock::time_point from, WallClock::time_point until) {
  static std::atomic<long> serial{1000};
  tls::X509Ptr out(X509_new());
  X509_set_version(out.get(), 2);
  ASN1_INTEGER_set(X509_get_serialNumber(out.get()), ++serial);
  ASN1_TIME_set(X509_getm_notBefore(out.get()), WallClock::to_time_t(from));
  ASN1_TIME_set(X509_getm_notAfter(out.get()), WallClock::to_time_t(until));
  X509_set_pubkey(out.get(), key);
  return out;
}

tls::X509Ptr make_ca(EVP_PKEY* key, const std::string& name) {
  auto now = WallClock::now();
  // From 2020 on, so that tests with a clock of their own find it valid too.
  auto out = blank(key, WallClock::from_time_t(1'577'836'800), now + std::chrono::hours(24 * 3650));
  X509_NAME_add_entry_by_txt(X509_get_subject_name(out.get()), "O", MBSTRING_UTF8,
                             reinterpret_cast<const unsigned char*>(name.c_str()), -1, -1, 0);
  add_extension(out.get(), NID_basic_constraints, "critical,CA:TRUE");
  add_extension(out.get(), NID_key_usage, "critical,keyCertSign,cRLSign");
  add_extension(out.get(), NID_subject_key_identifier, "hash");
  return out;
}

void add_names(X509* certificate, const LeafOptions& options) {
  NamesPtr names(sk_GENERAL_NAME_new_null());
  auto add = [&](int type, const std::string& text) {
    GENERAL_NAME* name = GENERAL_NAME_new();
    ASN1_IA5STRING* value = ASN1_IA5STRING_new();
    ASN1_STRING_set(value, text.data(), static_cast<int>(text.size()));
    GENERAL_NAME_set0_value(name, type, value);
    sk_GENERAL_NAME_push(names.get(), name);
  };
  for (const auto& uri : options.uris) add(GEN_URI, uri);
  for (const auto& dns : options.dns) add(GEN_DNS, dns);
  for (const auto& ip : options.ips) {
    GENERAL_NAME* name = GENERAL_NAME_new();
    GENERAL_NAME_set0_value(name, GEN_IPADD, a2i_IPADDRESS(ip.c_str()));
    sk_GENERAL_NAME_push(names.get(), name);
  }
  if (sk_GENERAL_NAME_num(names.get()) == 0) return;
  must(X509_add1_ext_i2d(certificate, NID_subject_alt_name, names.get(), 1, X509V3_ADD_APPEND) == 1, "SAN");
}

}  // namespace

std::string spiffe(const std::string& ns, const std::string& service_account) {
  return "spiffe://cluster.local/ns/" + ns + "/sa/" + service_account;
}

TestCa::TestCa(const std::string& name, KeyKind kind)
    : key_(make_key(kind)), certificate_(make_ca(key_.get(), name)) {
  X509_set_issuer_name(certificate_.get(), X509_get_subject_name(certificate_.get()));
  must(X509_sign(certificate_.get(), key_.get(), EVP_sha256()) > 0, "sign root");
  root_pem_ = tls::to_pem(certificate_.get());
}

TestCa::TestCa(const TestCa& parent, const std::string& name)
    : key_(make_key(KeyKind::p256)), certificate_(make_ca(key_.get(), name)), root_pem_(parent.root_pem_) {
  X509_set_issuer_name(certificate_.get(), X509_get_subject_name(parent.certificate_.get()));
  must(X509_sign(certificate_.get(), parent.key_.get(), EVP_sha256()) > 0, "sign intermediate");
  intermediates_pem_ = tls::to_pem(certificate_.get()) + parent.intermediates_pem_;
}

Issued TestCa::issue(const LeafOptions& options) const {
  auto key = make_key(options.key);
  auto leaf = blank(key.get(), options.not_before, options.not_after);
  X509_set_issuer_name(leaf.get(), X509_get_subject_name(certificate_.get()));
  add_extension(leaf.get(), NID_basic_constraints, "critical,CA:FALSE");
  add_extension(leaf.get(), NID_key_usage, "critical,digitalSignature,keyEncipherment");
  std::string usage = options.server_auth ? "serverAuth" : "";
  if (options.client_auth) usage += usage.empty() ? "clientAuth" : ",clientAuth";
  if (!usage.empty()) add_extension(leaf.get(), NID_ext_key_usage, usage.c_str());
  add_names(leaf.get(), options);
  must(X509_sign(leaf.get(), key_.get(), EVP_sha256()) > 0, "sign leaf");
  return {tls::to_pem(key.get()), tls::to_pem(leaf.get()) + intermediates_pem_, std::move(leaf)};
}

std::shared_ptr<const tls::Credential> TestCa::credential(const LeafOptions& options) const {
  auto issued = issue(options);
  auto out = tls::Credential::from_pem(issued.key_pem, issued.chain_pem);
  if (!out) std::fprintf(stderr, "test certificates: %s\n", out.error().message.c_str());
  must(out.has_value(), "credential");
  return *out;
}

std::shared_ptr<const tls::Credential> TestCa::credential(const std::string& ns,
                                                          const std::string& service_account) const {
  return credential(LeafOptions{.uris = {spiffe(ns, service_account)}});
}

std::shared_ptr<const tls::TrustBundle> TestCa::trust() const {
  auto out = tls::TrustBundle::from_pem(root_pem_);
  must(out.has_value(), "trust bundle");
  return *out;
}

}  // namespace nodemesh::test

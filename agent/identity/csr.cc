#include "identity/csr.h"

#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>

#include <fmt/format.h>

namespace nodemesh::identity {
namespace {

using RequestPtr = std::unique_ptr<X509_REQ, tls::Freed<X509_REQ_free>>;
using NamesPtr = std::unique_ptr<GENERAL_NAMES, tls::Freed<GENERAL_NAMES_free>>;
void free_extensions(STACK_OF(X509_EXTENSION) * stack) {
  sk_X509_EXTENSION_pop_free(stack, X509_EXTENSION_free);
}
using ExtensionsPtr = std::unique_ptr<STACK_OF(X509_EXTENSION), tls::Freed<free_extensions>>;

constexpr size_t kMaxCsr = 32 * 1024;

// Built as a value, not through OpenSSL's configuration syntax: a comma in a name could add a second SAN
// there.
bool add_uri_san(X509_REQ* request, std::string_view uri) {
  GENERAL_NAME* name = GENERAL_NAME_new();
  ASN1_IA5STRING* text = ASN1_IA5STRING_new();
  ASN1_STRING_set(text, uri.data(), static_cast<int>(uri.size()));
  GENERAL_NAME_set0_value(name, GEN_URI, text);
  NamesPtr names(sk_GENERAL_NAME_new_null());
  sk_GENERAL_NAME_push(names.get(), name);
  ExtensionsPtr extensions(sk_X509_EXTENSION_new_null());
  STACK_OF(X509_EXTENSION)* raw = extensions.get();
  return X509V3_add1_i2d(&raw, NID_subject_alt_name, names.get(), 1, X509V3_ADD_APPEND) == 1 &&
         X509_REQ_add_extensions(request, raw) == 1;
}

}  // namespace

Result<KeyAndCsr> make_csr(std::string_view uri) {
  auto key = tls::make_p256_key();
  if (!key) return std::unexpected(key.error());
  RequestPtr request(X509_REQ_new());
  bool ok = request && X509_REQ_set_version(request.get(), 0) == 1 &&
            X509_REQ_set_pubkey(request.get(), key->get()) == 1 && add_uri_san(request.get(), uri) &&
            X509_REQ_sign(request.get(), key->get(), EVP_sha256()) > 0;
  if (!ok) return fail("cannot make a certificate request: " + tls::take_openssl_error());
  tls::BioPtr bio(BIO_new(BIO_s_mem()));
  PEM_write_bio_X509_REQ(bio.get(), request.get());
  char* data = nullptr;
  long size = BIO_get_mem_data(bio.get(), &data);
  return KeyAndCsr{tls::to_pem(key->get()), std::string(data, static_cast<size_t>(size))};
}

Result<tls::PkeyPtr> key_of_csr(std::string_view csr_pem) {
  if (csr_pem.size() > kMaxCsr) return fail("csr: longer than 32 KiB");
  tls::BioPtr bio(BIO_new_mem_buf(csr_pem.data(), static_cast<int>(csr_pem.size())));
  ERR_clear_error();
  RequestPtr request(PEM_read_bio_X509_REQ(bio.get(), nullptr, nullptr, nullptr));
  if (!request) return fail("csr: not a PEM certificate request: " + tls::take_openssl_error());
  tls::PkeyPtr key(X509_REQ_get_pubkey(request.get()));
  if (!key) return fail("csr: the public key does not parse: " + tls::take_openssl_error());
  char group[64] = {};
  size_t group_size = 0;
  bool p256 = EVP_PKEY_is_a(key.get(), "EC") &&
              EVP_PKEY_get_group_name(key.get(), group, sizeof group, &group_size) == 1 &&
              std::string_view(group, group_size) == "prime256v1";
  int bits = EVP_PKEY_get_bits(key.get());
  // Above 8192 bits one verification costs seconds: a request would be an attack on the CA.
  bool rsa = EVP_PKEY_is_a(key.get(), "RSA") && bits >= 2048 && bits <= 8192;
  if (!p256 && !rsa) {
    const char* type = EVP_PKEY_get0_type_name(key.get());
    return fail(
        fmt::format("csr: key {} of {} bits is not accepted; use ECDSA P-256 or RSA of 2048 to 8192 bits",
                    type ? type : "unknown", bits));
  }
  if (X509_REQ_verify(request.get(), key.get()) != 1) {
    return fail("csr: the request's own signature does not verify: " + tls::take_openssl_error());
  }
  ERR_clear_error();
  return key;
}

}  // namespace nodemesh::identity

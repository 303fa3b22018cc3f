#include "controller/x509_build.h"

#include <openssl/x509v3.h>

namespace nodemesh::controller {
namespace {

using NamesPtr = std::unique_ptr<GENERAL_NAMES, tls::Freed<GENERAL_NAMES_free>>;
using ExtensionPtr = std::unique_ptr<X509_EXTENSION, tls::Freed<X509_EXTENSION_free>>;
using NumberPtr = std::unique_ptr<BIGNUM, tls::Freed<BN_free>>;

// As a value and not by configuration syntax, where a comma in a name would begin another SAN.
void push_name(GENERAL_NAMES* names, int type, const std::string& text) {
  GENERAL_NAME* name = GENERAL_NAME_new();
  ASN1_IA5STRING* value = ASN1_IA5STRING_new();
  ASN1_STRING_set(value, text.data(), static_cast<int>(text.size()));
  GENERAL_NAME_set0_value(name, type, value);
  sk_GENERAL_NAME_push(names, name);
}

}  // namespace

bool set_serial(X509* certificate) {
  NumberPtr number(BN_new());
  return number && BN_rand(number.get(), 127, BN_RAND_TOP_ONE, BN_RAND_BOTTOM_ANY) == 1 &&
         BN_to_ASN1_INTEGER(number.get(), X509_get_serialNumber(certificate)) != nullptr;
}

bool set_times(X509* certificate, WallClock::time_point from, WallClock::time_point until) {
  return ASN1_TIME_set(X509_getm_notBefore(certificate), WallClock::to_time_t(from)) != nullptr &&
         ASN1_TIME_set(X509_getm_notAfter(certificate), WallClock::to_time_t(until)) != nullptr;
}

bool add_extension(X509* certificate, X509* issuer, int nid, const char* value) {
  X509V3_CTX ctx;
  X509V3_set_ctx_nodb(&ctx);
  X509V3_set_ctx(&ctx, issuer, certificate, nullptr, nullptr, 0);
  ExtensionPtr extension(X509V3_EXT_conf_nid(nullptr, &ctx, nid, value));
  return extension && X509_add_ext(certificate, extension.get(), -1) == 1;
}

bool add_subject_names(X509* certificate, const SubjectNames& names) {
  NamesPtr all(sk_GENERAL_NAME_new_null());
  for (const std::string& uri : names.uris) push_name(all.get(), GEN_URI, uri);
  for (const std::string& dns : names.dns) push_name(all.get(), GEN_DNS, dns);
  return X509_add1_ext_i2d(certificate, NID_subject_alt_name, all.get(), 1, X509V3_ADD_APPEND) == 1;
}

}  // namespace nodemesh::controller

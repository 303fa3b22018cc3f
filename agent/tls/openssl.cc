#include "tls/openssl.h"

#include <openssl/ec.h>
#include <openssl/err.h>
#include <openssl/pem.h>

#include <ctime>

namespace nodemesh::tls {
namespace {

BioPtr reading(std::string_view text) {
  return BioPtr(BIO_new_mem_buf(text.data(), static_cast<int>(text.size())));
}

std::string written(BIO* bio) {
  char* data = nullptr;
  long size = BIO_get_mem_data(bio, &data);
  return size > 0 ? std::string(data, static_cast<size_t>(size)) : std::string();
}

// An encrypted key would otherwise prompt on the terminal.
int no_password(char*, int, int, void*) {
  return -1;
}

}  // namespace

std::string take_openssl_error() {
  unsigned long code = ERR_peek_last_error();
  if (code == 0) return "no further detail";
  char text[256];
  ERR_error_string_n(code, text, sizeof text);
  ERR_clear_error();
  // "error:0A000086:SSL routines::certificate verify failed": people need the last part.
  std::string_view all = text;
  size_t last = all.rfind(':');
  return std::string(last == std::string_view::npos ? all : all.substr(last + 1));
}

Result<std::vector<X509Ptr>> parse_certificates(std::string_view pem) {
  if (pem.size() > (1u << 20)) return fail("certificates: more than 1 MiB of PEM");
  std::vector<X509Ptr> out;
  BioPtr bio = reading(pem);
  ERR_clear_error();
  while (true) {
    X509Ptr certificate(PEM_read_bio_X509(bio.get(), nullptr, no_password, nullptr));
    if (!certificate) break;
    out.push_back(std::move(certificate));
  }
  if (ERR_GET_REASON(ERR_peek_last_error()) == PEM_R_NO_START_LINE) {  // the ordinary end of input
    ERR_clear_error();
    return out;
  }
  return fail("certificate " + std::to_string(out.size() + 1) + " does not parse: " + take_openssl_error());
}

std::string to_pem(X509* certificate) {
  BioPtr bio(BIO_new(BIO_s_mem()));
  PEM_write_bio_X509(bio.get(), certificate);
  return written(bio.get());
}

std::string to_pem(EVP_PKEY* key) {
  BioPtr bio(BIO_new(BIO_s_secmem()));
  PEM_write_bio_PKCS8PrivateKey(bio.get(), key, nullptr, nullptr, 0, nullptr, nullptr);
  return written(bio.get());
}

Result<PkeyPtr> make_p256_key() {
  PkeyPtr key(EVP_EC_gen("P-256"));
  if (!key) return fail("cannot make an ECDSA P-256 key: " + take_openssl_error());
  return key;
}

Result<PkeyPtr> parse_private_key(std::string_view pem) {
  if (pem.size() > (1u << 20)) return fail("private key: more than 1 MiB of PEM");
  BioPtr bio = reading(pem);
  ERR_clear_error();
  PkeyPtr key(PEM_read_bio_PrivateKey(bio.get(), nullptr, no_password, nullptr));
  if (!key) return fail("private key does not parse as unencrypted PEM: " + take_openssl_error());
  ERR_clear_error();
  return key;
}

std::array<uint8_t, 32> sha256(std::string_view bytes) {
  std::array<uint8_t, 32> out{};
  EVP_Q_digest(nullptr, "SHA256", nullptr, bytes.data(), bytes.size(), out.data(), nullptr);
  return out;
}

Result<WallClock::time_point> to_time(const ASN1_TIME* time) {
  std::tm parts{};
  if (time == nullptr || ASN1_TIME_to_tm(time, &parts) != 1)
    return fail("a certificate's time does not parse");
  return WallClock::from_time_t(timegm(&parts));
}

std::string serial_of(X509* certificate) {
  const ASN1_INTEGER* serial = X509_get0_serialNumber(certificate);
  static constexpr char kDigits[] = "0123456789abcdef";
  std::string out;
  for (int i = 0; i < ASN1_STRING_length(serial); ++i) {
    unsigned char byte = ASN1_STRING_get0_data(serial)[i];
    out += kDigits[byte >> 4];
    out += kDigits[byte & 15];
  }
  return out;
}

}  // namespace nodemesh::tls

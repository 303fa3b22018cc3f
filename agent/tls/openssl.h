// Owning pointers for OpenSSL's objects and the conversions every user of them needs. The one header of ours
// that includes OpenSSL. No state; any thread.
#pragma once

#include <openssl/bio.h>
#include <openssl/evp.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>

#include <array>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/reason.h"

namespace nodemesh::tls {

template <auto free>
struct Freed {
  template <class T>
  void operator()(T* pointer) const {
    free(pointer);
  }
};
// OpenSSL marks the session of a connection that ends without close_notify as not resumable, a rule that
// TLS 1.1 dropped; between agents a lost connection is the very moment to resume.
inline void free_ssl(SSL* ssl) {
  SSL_set_shutdown(ssl, SSL_SENT_SHUTDOWN | SSL_RECEIVED_SHUTDOWN);
  SSL_free(ssl);
}
inline void free_stack(STACK_OF(X509) * stack) {
  sk_X509_pop_free(stack, X509_free);
}

using PkeyPtr = std::unique_ptr<EVP_PKEY, Freed<EVP_PKEY_free>>;
using X509Ptr = std::unique_ptr<X509, Freed<X509_free>>;
using X509StackPtr = std::unique_ptr<STACK_OF(X509), Freed<free_stack>>;
using StorePtr = std::unique_ptr<X509_STORE, Freed<X509_STORE_free>>;
using StoreCtxPtr = std::unique_ptr<X509_STORE_CTX, Freed<X509_STORE_CTX_free>>;
using SslPtr = std::unique_ptr<SSL, Freed<free_ssl>>;
using SslCtxPtr = std::unique_ptr<SSL_CTX, Freed<SSL_CTX_free>>;
using SessionPtr = std::unique_ptr<SSL_SESSION, Freed<SSL_SESSION_free>>;
using BioPtr = std::unique_ptr<BIO, Freed<BIO_free_all>>;
using MdCtxPtr = std::unique_ptr<EVP_MD_CTX, Freed<EVP_MD_CTX_free>>;
using MdPtr = std::unique_ptr<EVP_MD, Freed<EVP_MD_free>>;

// The newest entry of this thread's OpenSSL error queue as text, and the queue emptied: an entry left behind
// would be read as the outcome of the next connection's call.
std::string take_openssl_error();

// All CERTIFICATE blocks of `pem`, in order. Text between blocks is ignored; a block that does not parse is
// an error.
Result<std::vector<X509Ptr>> parse_certificates(std::string_view pem);
std::string to_pem(X509* certificate);
std::string to_pem(EVP_PKEY* key);  // PKCS#8, unencrypted: secret
// A new ECDSA key on P-256.
Result<PkeyPtr> make_p256_key();
Result<PkeyPtr> parse_private_key(std::string_view pem);

std::array<uint8_t, 32> sha256(std::string_view bytes);
Result<WallClock::time_point> to_time(const ASN1_TIME* time);
// Lower-case hexadecimal of a certificate's serial number.
std::string serial_of(X509* certificate);

}  // namespace nodemesh::tls

// An OpenSSL library context with only the algorithms that mesh TLS needs. OpenSSL 3.0 walks every algorithm
// that it has fetched whenever it parses a certificate's public key, twice per handshake: 104 µs each time
// with its default provider; with this one reading the certificates is a tenth of a handshake's instructions.
// One per worker also means that workers do not meet at OpenSSL's locks.
#pragma once

#include <openssl/provider.h>
#include <openssl/types.h>

#include <memory>

#include "base/reason.h"

namespace nodemesh::tls {

class Library {
 public:
  // Fails only where OpenSSL's default provider cannot be loaded.
  static Result<std::unique_ptr<Library>> create();
  ~Library();
  Library(const Library&) = delete;
  Library& operator=(const Library&) = delete;

  // For SSL_CTX_new_ex and X509_new_ex; outlives everything made with it only while this object lives.
  OSSL_LIB_CTX* get() const { return context_; }

 private:
  Library() = default;
  OSSL_LIB_CTX* context_ = nullptr;
  OSSL_PROVIDER* provider_ = nullptr;
};

}  // namespace nodemesh::tls

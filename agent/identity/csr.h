// Certificate signing requests: what the agent sends and what the CA reads. Pure functions; any thread.
#pragma once

#include <string>
#include <string_view>

#include "base/reason.h"
#include "tls/openssl.h"

namespace nodemesh::identity {

struct KeyAndCsr {
  std::string key_pem;  // secret
  std::string csr_pem;
};

// A new ECDSA P-256 key and a request signed by it: empty subject, `uri` as the one, critical SAN.
Result<KeyAndCsr> make_csr(std::string_view uri);

// The public key of a request whose own signature verifies. Accepts ECDSA P-256 and RSA of 2048 to 8192 bits;
// errors say which rule was broken. Nothing else in the request counts.
Result<tls::PkeyPtr> key_of_csr(std::string_view csr_pem);

}  // namespace nodemesh::identity

// Decides on one certificate request: is the caller allowed this identity, is the request sound; then has it
// signed. The reasons go to our log; the caller learns only whether it was an authorisation or a malformed
// request, so that it cannot map the mesh by asking. Controller's main thread only.
#pragma once

#include <cstdint>
#include <expected>
#include <string>
#include <vector>

#include "base/reason.h"
#include "controller/ca.h"
#include "tls/spiffe.h"

namespace nodemesh::controller {

// What the caller says to prove who it is. Whether its process may connect at all was decided before.
struct Caller {
  std::string token;  // of `authorization: Bearer`; may be empty: secret, never logged
};

// Two sides: the folder of a standalone mesh, and tests.
class Authorizer {
 public:
  virtual ~Authorizer() = default;
  // May `caller` have a certificate for `id`? The error says why not, for the log.
  virtual Result<> authorize(const Caller& caller, const tls::SpiffeId& id) const = 0;
};

class Issuer {
 public:
  struct Request {
    std::string csr;
    int64_t lifetime_seconds = 0;
    std::string impersonated_identity;
  };
  enum class Refusal { unauthenticated, invalid_request, internal };

  // Both outlive the issuer.
  Issuer(const CertificateAuthority& authority, const Authorizer& authorizer)
      : authority_(authority), authorizer_(authorizer) {}
  // PEM certificates, leaf first, root last.
  std::expected<std::vector<std::string>, Refusal> issue(const Caller& caller, const Request& request) const;

 private:
  const CertificateAuthority& authority_;
  const Authorizer& authorizer_;
};

}  // namespace nodemesh::controller

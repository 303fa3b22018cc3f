// The client's side of ordinary TLS: to a server that is known by a DNS name or an address (RFC 6125), not by
// a SPIFFE identity as in context.h. The API server and certificate authorities are such servers. In
// OpenSSL's default library: they have RSA keys too, which the agents' slim one does not. For connections by
// the minute: a context is made for each. No state; any thread.
#pragma once

#include <string>
#include <string_view>

#include "base/reason.h"
#include "tls/openssl.h"

namespace nodemesh::tls {

struct OutgoingTls {
  std::string server_name;       // what the certificate must be for; an address is compared as one
  std::string_view roots;        // PEM; used unless `system_roots`
  std::string roots_name;        // for messages: "roots file /x"
  bool system_roots = false;     // the machine's instead
  std::string_view certificate;  // PEM, the leaf first; empty: none is shown
  std::string_view key;          // PEM
  std::string client_name;       // for messages: "kubeconfig /x"
  std::string_view alpn;         // in wire format (RFC 7301 3.1): length, name, length, name
};

// TLS 1.2 or later, in connect state and fit for tls::Stream. The texts are not used after the call.
Result<SslPtr> outgoing_ssl(const OutgoingTls& settings);

// The protocol that both agreed on, or empty.
std::string_view agreed_protocol(SSL* ssl);

}  // namespace nodemesh::tls

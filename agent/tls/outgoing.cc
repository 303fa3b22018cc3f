#include "tls/outgoing.h"

#include <openssl/x509v3.h>

#include "base/addr.h"

namespace nodemesh::tls {
namespace {

Result<> set_roots(SSL_CTX* context, const OutgoingTls& settings) {
  if (settings.system_roots) {
    SSL_CTX_set_default_verify_paths(context);
    return {};
  }
  auto roots = parse_certificates(settings.roots);
  if (!roots) return fail(settings.roots_name + ": " + roots.error().message);
  if (roots->empty()) return fail(settings.roots_name + " holds no PEM certificate");
  for (const auto& root : *roots) X509_STORE_add_cert(SSL_CTX_get_cert_store(context), root.get());
  return {};
}

Result<> set_certificate(SSL_CTX* context, const OutgoingTls& settings) {
  if (settings.certificate.empty()) return {};
  auto chain = parse_certificates(settings.certificate);
  if (!chain) return fail("client certificate: " + chain.error().message);
  if (chain->empty()) return fail("client certificate: no certificate in " + settings.client_name);
  auto key = parse_private_key(settings.key);
  if (!key) return fail("client key: " + key.error().message);
  SSL_CTX_use_certificate(context, chain->front().get());
  for (size_t i = 1; i < chain->size(); ++i) SSL_CTX_add1_chain_cert(context, (*chain)[i].get());
  if (SSL_CTX_use_PrivateKey(context, key->get()) != 1 || SSL_CTX_check_private_key(context) != 1)
    return fail("client key: it is not the certificate's: " + take_openssl_error());
  return {};
}

Result<> set_expected_name(SSL* ssl, const std::string& name) {
  auto* parameters = SSL_get0_param(ssl);
  bool set = false;
  if (Addr::parse(name)) {
    set = X509_VERIFY_PARAM_set1_ip_asc(parameters, name.c_str()) == 1;
  } else {
    X509_VERIFY_PARAM_set_hostflags(
        parameters, X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS | X509_CHECK_FLAG_NEVER_CHECK_SUBJECT);
    set = !name.empty() && X509_VERIFY_PARAM_set1_host(parameters, name.c_str(), 0) == 1 &&
          SSL_set_tlsext_host_name(ssl, name.c_str()) == 1;
  }
  if (!set) return fail("TLS: \"" + name + "\" is no name that a server can have");
  return {};
}

}  // namespace

Result<SslPtr> outgoing_ssl(const OutgoingTls& settings) {
  SslCtxPtr context(SSL_CTX_new(TLS_client_method()));
  if (!context) return fail("TLS: cannot make a context: " + take_openssl_error());
  // 1.2 for servers of others: API servers and authorities accept it, and may be held to it.
  SSL_CTX_set_min_proto_version(context.get(), TLS1_2_VERSION);
  SSL_CTX_set_security_level(context.get(), 2);
  // tls::Stream expects the first; these handshakes are too rare for sessions to matter.
  SSL_CTX_set_mode(context.get(), SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
  SSL_CTX_set_session_cache_mode(context.get(), SSL_SESS_CACHE_OFF);
  SSL_CTX_set_options(context.get(), SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION);
  SSL_CTX_set_alpn_protos(context.get(), reinterpret_cast<const unsigned char*>(settings.alpn.data()),
                          static_cast<unsigned>(settings.alpn.size()));
  SSL_CTX_set_verify(context.get(), SSL_VERIFY_PEER, nullptr);
  if (auto set = set_roots(context.get(), settings); !set) return std::unexpected(set.error());
  if (auto set = set_certificate(context.get(), settings); !set) return std::unexpected(set.error());
  SslPtr ssl(SSL_new(context.get()));
  if (!ssl) return fail("TLS: " + take_openssl_error());
  if (auto set = set_expected_name(ssl.get(), settings.server_name); !set)
    return std::unexpected(set.error());
  SSL_set_connect_state(ssl.get());
  return ssl;
}

std::string_view agreed_protocol(SSL* ssl) {
  const unsigned char* name = nullptr;
  unsigned int size = 0;
  SSL_get0_alpn_selected(ssl, &name, &size);
  return {reinterpret_cast<const char*>(name), size};
}

}  // namespace nodemesh::tls

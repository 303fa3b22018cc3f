// In-process TLS for tests: a client and a server context with one authority, and a handshake over memory.
#pragma once

#include <memory>
#include <string>

#include "support/certs.h"
#include "tls/context.h"

namespace nodemesh::test {

struct Handshaken {
  tls::SslPtr client, server;
  Result<const tls::Peer*> at_client = fail("not finished"), at_server = fail("not finished");
};

// Moves bytes between two SSL objects until neither makes progress. 1 each when complete.
inline void shake_hands(SSL* client, SSL* server, int& client_done, int& server_done) {
  client_done = server_done = 0;
  for (int round = 0; round < 8; ++round) {
    if (client_done != 1) client_done = SSL_do_handshake(client);
    if (server_done != 1) server_done = SSL_do_handshake(server);
  }
}

inline void join(SSL* client, SSL* server) {
  BIO *a = nullptr, *b = nullptr;
  BIO_new_bio_pair(&a, 65536, &b, 65536);
  SSL_set_bio(client, a, a);
  SSL_set_bio(server, b, b);
}

struct Pair {
  Clock clock;
  TestCa ca;
  tls::Verifier client_verifier{clock, {"cluster.local"}}, server_verifier{clock, {"cluster.local"}};
  std::shared_ptr<const tls::TicketKeys> keys = *tls::TicketKeys::random(clock.wall());
  std::unique_ptr<tls::ClientContext> client = *tls::ClientContext::create(client_verifier);
  std::unique_ptr<tls::ServerContext> server = *tls::ServerContext::create(server_verifier, keys);
  std::shared_ptr<const tls::Credential> client_credential = ca.credential("default", "client");
  std::shared_ptr<const tls::Credential> server_credential = ca.credential("default", "server");
  std::shared_ptr<const tls::AcceptedPeers> accepted =
      std::make_shared<const tls::AcceptedPeers>(tls::AcceptedPeers{{"default", "server"}});
  std::string session_key;

  Pair() {
    client_verifier.set_trust(ca.trust());
    server_verifier.set_trust(ca.trust());
  }

  Handshaken connect() {
    Handshaken out;
    out.client = *client->connect(client_credential, accepted, session_key);
    return finish(std::move(out));
  }

  // With a client of the test's own making instead of ours.
  Handshaken connect(tls::SslPtr foreign) {
    Handshaken out;
    out.client = std::move(foreign);
    return finish(std::move(out), false);
  }

 private:
  Handshaken finish(Handshaken out, bool ours = true) {
    out.server = *server->accept(server_credential);
    join(out.client.get(), out.server.get());
    int client_done = 0, server_done = 0;
    shake_hands(out.client.get(), out.server.get(), client_done, server_done);
    if (ours) {
      out.at_client = client_done == 1 ? tls::finish_handshake(out.client.get())
                                       : std::unexpected(tls::handshake_error(out.client.get()));
    }
    out.at_server = server_done == 1 ? tls::finish_handshake(out.server.get())
                                     : std::unexpected(tls::handshake_error(out.server.get()));
    if (out.at_server) tls::send_ticket(out.server.get());
    char byte = 0;
    if (ours && out.at_client) SSL_read(out.client.get(), &byte, 1);  // takes in the ticket, if one came
    take();
    return out;
  }
  static void take() { tls::take_openssl_error(); }
};

// A client as strangers write them: TLS version, ALPN and certificate as the test says.
struct Stranger {
  int min_version = TLS1_3_VERSION, max_version = TLS1_3_VERSION;
  std::string alpn = std::string("\x02h2", 3);  // wire form; empty: none
  const Issued* identity = nullptr;

  tls::SslPtr make() const {
    tls::SslCtxPtr ctx(SSL_CTX_new(TLS_client_method()));
    SSL_CTX_set_min_proto_version(ctx.get(), min_version);
    SSL_CTX_set_max_proto_version(ctx.get(), max_version);
    SSL_CTX_set_security_level(ctx.get(), 0);
    SSL_CTX_set_verify(ctx.get(), SSL_VERIFY_NONE, nullptr);
    tls::SslPtr ssl(SSL_new(ctx.get()));
    if (!alpn.empty())
      SSL_set_alpn_protos(ssl.get(), reinterpret_cast<const unsigned char*>(alpn.data()), alpn.size());
    if (identity != nullptr) {
      auto key = *tls::parse_private_key(identity->key_pem);
      SSL_use_certificate(ssl.get(), identity->leaf.get());
      SSL_use_PrivateKey(ssl.get(), key.get());
    }
    SSL_set_connect_state(ssl.get());
    return ssl;
  }
};

}  // namespace nodemesh::test

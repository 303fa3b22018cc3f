#include "tls/context.h"

#include <openssl/core_names.h>
#include <openssl/err.h>
#include <openssl/rand.h>

#include <cstring>

#include <fmt/format.h>

#include "tls/handshake.h"

namespace nodemesh::tls {
namespace {

constexpr auto kSuites = "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384";
constexpr auto kGroups = "X25519:P-256";
// The RSA entries are for foreign peers (Istio's sidecars) and for roots that an operator plugged in.
constexpr auto kSignatures =
    "ECDSA+SHA256:ECDSA+SHA384:RSA-PSS+SHA256:RSA-PSS+SHA384:RSA+SHA256:RSA+SHA384:RSA+SHA512";
constexpr unsigned char kOffered[] = {3, 'n', 'm', '1', 2, 'h', '2'};
constexpr long kSessionSeconds = 3600;
constexpr long kMaxChainBytes = 32 * 1024;

Result<SslCtxPtr> make_context(const Verifier& verifier, const SSL_METHOD* method) {
  SslCtxPtr ctx(SSL_CTX_new_ex(verifier.library(), nullptr, method));
  if (!ctx) return fail("TLS: cannot make a context: " + take_openssl_error());
  bool ok = SSL_CTX_set_min_proto_version(ctx.get(), TLS1_3_VERSION) == 1 &&
            SSL_CTX_set_max_proto_version(ctx.get(), TLS1_3_VERSION) == 1 &&
            SSL_CTX_set_ciphersuites(ctx.get(), kSuites) == 1 &&
            SSL_CTX_set1_groups_list(ctx.get(), kGroups) == 1 &&
            SSL_CTX_set1_sigalgs_list(ctx.get(), kSignatures) == 1;
  if (!ok) return fail("TLS: this OpenSSL refuses our parameters: " + take_openssl_error());
  SSL_CTX_set_security_level(ctx.get(), 2);
  // The fake ChangeCipherSpec of RFC 8446 D.4 serves middleboxes; between nodes it is one more record to
  // parse.
  SSL_CTX_clear_options(ctx.get(), SSL_OP_ENABLE_MIDDLEBOX_COMPAT);
  SSL_CTX_set_options(ctx.get(), SSL_OP_NO_RENEGOTIATION | SSL_OP_CIPHER_SERVER_PREFERENCE);
  // NO_AUTO_CHAIN: OpenSSL would otherwise verify and build our own chain anew in each handshake.
  SSL_CTX_set_mode(ctx.get(), SSL_MODE_RELEASE_BUFFERS | SSL_MODE_ENABLE_PARTIAL_WRITE |
                                  SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER | SSL_MODE_NO_AUTO_CHAIN);
  SSL_CTX_set_max_cert_list(ctx.get(), kMaxChainBytes);
  SSL_CTX_set_timeout(ctx.get(), kSessionSeconds);
  return ctx;
}

// The certificate of one connection. SSL_use_* would be three calls that each check the pair again.
Result<> present(SSL* ssl, const Credential* credential, WallClock::time_point now) {
  if (credential == nullptr) return fail(Reason::NO_IDENTITY, "no certificate is available for the workload");
  if (!credential->valid_at(now)) {
    return fail(Reason::NO_IDENTITY,
                "the certificate of " + credential->uri() +
                    (now < credential->not_before() ? " is not yet valid" : " has expired"));
  }
  if (SSL_use_cert_and_key(ssl, credential->leaf(), credential->key(), credential->intermediates(), 1) == 1)
    return {};
  return fail(Reason::NO_IDENTITY,
              "the certificate of " + credential->uri() + " was refused: " + take_openssl_error());
}

}  // namespace

// OpenSSL's side of both contexts: plain functions that find the connection's Handshake and store verdicts
// there.
struct ContextCallbacks {
  // The ALPN callback below is not called for a client that offers nothing at all.
  static int on_client_hello(SSL* ssl, int* alert, void*) {
    const unsigned char* data = nullptr;
    size_t size = 0;
    if (SSL_client_hello_get0_ext(ssl, TLSEXT_TYPE_application_layer_protocol_negotiation, &data, &size) ==
        1) {
      return SSL_CLIENT_HELLO_SUCCESS;
    }
    refuse(ssl, Reason::ALPN_MISMATCH, "the client offered no ALPN");
    *alert = SSL_AD_NO_APPLICATION_PROTOCOL;
    return SSL_CLIENT_HELLO_ERROR;
  }

  static int on_alpn(SSL* ssl, const unsigned char** out, unsigned char* out_size, const unsigned char* in,
                     unsigned int in_size, void*) {
    const unsigned char* h2 = nullptr;
    for (unsigned int at = 0; at < in_size; at += in[at] + 1u) {
      std::string_view name(reinterpret_cast<const char*>(in + at + 1), in[at]);
      if (name == "nm1") {
        *out = in + at + 1;
        *out_size = 3;
        return SSL_TLSEXT_ERR_OK;
      }
      if (name == "h2") h2 = in + at + 1;
    }
    if (h2 == nullptr) {
      refuse(ssl, Reason::ALPN_MISMATCH, "the client offered neither nm1 nor h2");
      return SSL_TLSEXT_ERR_ALERT_FATAL;
    }
    *out = h2;
    *out_size = 2;
    return SSL_TLSEXT_ERR_OK;
  }

  static int on_verify(X509_STORE_CTX* store, void*) {
    auto* ssl = static_cast<SSL*>(X509_STORE_CTX_get_ex_data(store, SSL_get_ex_data_X509_STORE_CTX_idx()));
    Handshake* handshake = handshake_of(ssl);
    PeerRole role = SSL_is_server(ssl) ? PeerRole::client : PeerRole::server;
    auto peer = handshake->verifier->verify(X509_STORE_CTX_get0_cert(store),
                                            X509_STORE_CTX_get0_untrusted(store), role);
    if (peer && handshake->accepted && !any_matches(*handshake->accepted, (*peer)->id)) {
      peer = fail(Reason::PEER_ID_MISMATCH, "the server is " + (*peer)->uri + ", which is not accepted here");
    }
    if (!peer) {
      refuse(ssl, peer.error().reason, std::move(peer.error().message));
      X509_STORE_CTX_set_error(store,
                               X509_V_ERR_CERT_REJECTED);  // the alert bad_certificate tells the peer no more
      return 0;
    }
    handshake->peer.identity = std::move(*peer);
    X509_STORE_CTX_set_error(store, X509_V_OK);
    return 1;
  }

  static int on_new_session(SSL* ssl, SSL_SESSION* session) {
    Handshake* handshake = handshake_of(ssl);
    if (handshake != nullptr && handshake->client != nullptr) handshake->client->keep_session(ssl, session);
    return 0;  // we took a reference of our own
  }

  static int on_ticket_key(SSL* ssl, unsigned char* name, unsigned char* iv, EVP_CIPHER_CTX* cipher,
                           EVP_MAC_CTX* mac, int sealing) {
    auto keys = handshake_of(ssl)->server->keys_;
    if (!keys) return 0;
    const TicketKeys::Key* key = &keys->current;
    if (sealing) {
      if (RAND_bytes(iv, 16) != 1) return -1;
      std::memcpy(name, key->name.data(), key->name.size());
    } else if (std::memcmp(name, key->name.data(), key->name.size()) != 0) {
      key = &keys->previous;
      if (std::memcmp(name, key->name.data(), key->name.size()) != 0) return 0;
    }
    char digest[] = "SHA256";
    OSSL_PARAM params[] = {OSSL_PARAM_construct_octet_string(
                               OSSL_MAC_PARAM_KEY, const_cast<uint8_t*>(key->hmac.data()), key->hmac.size()),
                           OSSL_PARAM_construct_utf8_string(OSSL_MAC_PARAM_DIGEST, digest, 0),
                           OSSL_PARAM_construct_end()};
    if (EVP_MAC_CTX_set_params(mac, params) != 1) return -1;
    const EVP_CIPHER* aes = EVP_aes_256_cbc();
    int ok = sealing ? EVP_EncryptInit_ex2(cipher, aes, key->aes.data(), iv, nullptr)
                     : EVP_DecryptInit_ex2(cipher, aes, key->aes.data(), iv, nullptr);
    if (ok != 1) return -1;
    return 1;
  }

  static int on_seal_ticket(SSL* ssl, void*) {
    Handshake* handshake = handshake_of(ssl);
    if (!handshake->peer.identity) return 0;
    std::string data = encode_peer(*handshake->peer.identity);
    return SSL_SESSION_set1_ticket_appdata(SSL_get_session(ssl), data.data(), data.size());
  }

  // The client's certificate is not seen again on resumption, so what was true of it is checked here: its
  // time, the roots, the trust domain. If not, the handshake goes on in full.
  static SSL_TICKET_RETURN on_open_ticket(SSL* ssl, SSL_SESSION* session, const unsigned char*, size_t,
                                          SSL_TICKET_STATUS status, void*) {
    if (status != SSL_TICKET_SUCCESS) return SSL_TICKET_RETURN_IGNORE_RENEW;
    Handshake* handshake = handshake_of(ssl);
    void* data = nullptr;
    size_t size = 0;
    if (SSL_SESSION_get0_ticket_appdata(session, &data, &size) != 1) return SSL_TICKET_RETURN_IGNORE_RENEW;
    auto peer = decode_peer({static_cast<const char*>(data), size});
    if (!peer || !handshake->verifier->still_valid(*peer)) return SSL_TICKET_RETURN_IGNORE_RENEW;
    handshake->resumable = std::make_shared<const PeerIdentity>(std::move(*peer));
    return SSL_TICKET_RETURN_USE;
  }
};

bool TicketKeys::due(WallClock::time_point now) const {
  auto age = now - WallClock::from_time_t(made);
  return age >= kPeriod || age < seconds(0);
}

Result<std::shared_ptr<const TicketKeys>> TicketKeys::random(WallClock::time_point now) {
  TicketKeys keys{.made = WallClock::to_time_t(now)};
  auto fill = [](Key& key) {
    return RAND_bytes(key.name.data(), key.name.size()) == 1 &&
           RAND_priv_bytes(key.aes.data(), key.aes.size()) == 1 &&
           RAND_priv_bytes(key.hmac.data(), key.hmac.size()) == 1;
  };
  if (!fill(keys.current) || !fill(keys.previous))
    return fail("no random bytes for session tickets: " + take_openssl_error());
  return std::make_shared<const TicketKeys>(keys);
}

Result<std::shared_ptr<const TicketKeys>> TicketKeys::rotate(const TicketKeys& old,
                                                             WallClock::time_point now) {
  auto fresh = random(now);
  if (!fresh) return fresh;
  TicketKeys keys = **fresh;
  keys.previous = old.current;
  return std::make_shared<const TicketKeys>(keys);
}

ServerContext::~ServerContext() = default;
ClientContext::~ClientContext() = default;

Result<std::unique_ptr<ServerContext>> ServerContext::create(Verifier& verifier,
                                                             std::shared_ptr<const TicketKeys> keys) {
  auto ctx = make_context(verifier, TLS_server_method());
  if (!ctx) return std::unexpected(ctx.error());
  std::unique_ptr<ServerContext> out(new ServerContext(verifier));
  SSL_CTX* raw = ctx->get();
  SSL_CTX_set_verify(raw, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, nullptr);
  SSL_CTX_set_cert_verify_callback(raw, ContextCallbacks::on_verify, nullptr);
  SSL_CTX_set_client_hello_cb(raw, ContextCallbacks::on_client_hello, nullptr);
  SSL_CTX_set_alpn_select_cb(raw, ContextCallbacks::on_alpn, nullptr);
  SSL_CTX_set_session_cache_mode(raw, SSL_SESS_CACHE_OFF);
  SSL_CTX_set_num_tickets(raw, 0);  // see send_ticket
  SSL_CTX_set_tlsext_ticket_key_evp_cb(raw, ContextCallbacks::on_ticket_key);
  SSL_CTX_set_session_ticket_cb(raw, ContextCallbacks::on_seal_ticket, ContextCallbacks::on_open_ticket,
                                nullptr);
  out->ctx_ = std::move(*ctx);
  out->set_ticket_keys(std::move(keys));
  return out;
}

void ServerContext::set_ticket_keys(std::shared_ptr<const TicketKeys> keys) {
  keys_ = std::move(keys);
  if (keys_) {
    SSL_CTX_clear_options(ctx_.get(), SSL_OP_NO_TICKET);
  } else {
    SSL_CTX_set_options(ctx_.get(), SSL_OP_NO_TICKET);
  }
}

Result<SslPtr> ServerContext::accept(std::shared_ptr<const Credential> credential) {
  SslPtr ssl(SSL_new(ctx_.get()));
  if (!ssl) return fail(Reason::TLS_FAILED, "TLS: no memory for a connection: " + take_openssl_error());
  if (auto done = present(ssl.get(), credential.get(), verifier_.now()); !done)
    return std::unexpected(done.error());
  // Without a context of its own a ticket of one pod's listener would open another's.
  const auto& context = credential->session_context();
  SSL_set_session_id_context(ssl.get(), context.data(), context.size());
  attach(ssl.get(), Handshake{.verifier = &verifier_, .server = this, .credential = std::move(credential)});
  SSL_set_accept_state(ssl.get());
  return ssl;
}

Result<std::unique_ptr<ClientContext>> ClientContext::create(Verifier& verifier, size_t sessions) {
  auto ctx = make_context(verifier, TLS_client_method());
  if (!ctx) return std::unexpected(ctx.error());
  std::unique_ptr<ClientContext> out(new ClientContext(verifier));
  SSL_CTX* raw = ctx->get();
  SSL_CTX_set_verify(raw, SSL_VERIFY_PEER, nullptr);
  SSL_CTX_set_cert_verify_callback(raw, ContextCallbacks::on_verify, nullptr);
  if (SSL_CTX_set_alpn_protos(raw, kOffered, sizeof kOffered) != 0) return fail("TLS: cannot offer ALPN");
  SSL_CTX_set_session_cache_mode(raw, SSL_SESS_CACHE_CLIENT | SSL_SESS_CACHE_NO_INTERNAL);
  SSL_CTX_sess_set_new_cb(raw, ContextCallbacks::on_new_session);
  out->ctx_ = std::move(*ctx);
  out->limit_ = sessions;
  return out;
}

Result<SslPtr> ClientContext::connect(std::shared_ptr<const Credential> credential,
                                      std::shared_ptr<const AcceptedPeers> accepted,
                                      std::string session_key) {
  SslPtr ssl(SSL_new(ctx_.get()));
  if (!ssl) return fail(Reason::TLS_FAILED, "TLS: no memory for a connection: " + take_openssl_error());
  if (auto done = present(ssl.get(), credential.get(), verifier_.now()); !done)
    return std::unexpected(done.error());
  if (!accepted) accepted = std::make_shared<const AcceptedPeers>();  // none: nobody
  attach(ssl.get(), Handshake{.verifier = &verifier_,
                              .client = this,
                              .credential = std::move(credential),
                              .accepted = std::move(accepted),
                              .session_key = std::move(session_key)});
  SSL_set_connect_state(ssl.get());
  offer_session(ssl.get());
  return ssl;
}

void ClientContext::offer_session(SSL* ssl) {
  Handshake* handshake = handshake_of(ssl);
  auto found = handshake->session_key.empty() ? cache_.end() : cache_.find(handshake->session_key);
  if (found == cache_.end()) return;
  const Resumable& kept = found->second;
  if (!verifier_.still_valid(*kept.peer) || !any_matches(*handshake->accepted, kept.peer->id)) {
    drop_session(found->first);
    return;
  }
  // A copy: OpenSSL marks a TLS 1.3 session as used up at its first resumption, and what it derives from it
  // too. RFC 8446 C.4 asks for single use to hide clients from observers, who here see pod addresses anyway.
  SessionPtr copy(SSL_SESSION_dup(kept.session.get()));
  if (copy && SSL_set_session(ssl, copy.get()) == 1) handshake->resumable = kept.peer;
}

void ClientContext::keep_session(SSL* ssl, SSL_SESSION* session) {
  Handshake* handshake = handshake_of(ssl);
  const Peer* peer = peer_of(ssl);
  if (limit_ == 0 || peer == nullptr || peer->alpn != Alpn::nm1 || handshake->session_key.empty() ||
      !SSL_SESSION_is_resumable(session)) {
    return;
  }
  drop_session(handshake->session_key);
  if (cache_.size() >= limit_) drop_session(*oldest_first_.front());
  SSL_SESSION_up_ref(session);
  auto entry =
      cache_.emplace(handshake->session_key, Resumable{SessionPtr(session), peer->identity, {}}).first;
  entry->second.age = oldest_first_.insert(oldest_first_.end(), &entry->first);
}

void ClientContext::drop_session(const std::string& key) {
  auto found = cache_.find(key);
  if (found == cache_.end()) return;
  oldest_first_.erase(found->second.age);
  cache_.erase(found);
}

void ClientContext::forget_sessions(std::string_view prefix) {
  auto it = cache_.lower_bound(prefix);
  while (it != cache_.end() && it->first.starts_with(prefix)) {
    oldest_first_.erase(it->second.age);
    it = cache_.erase(it);
  }
}

}  // namespace nodemesh::tls

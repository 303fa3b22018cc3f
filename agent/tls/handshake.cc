#include "tls/handshake.h"

#include <openssl/err.h>

#include <cstring>

#include <fmt/format.h>

namespace nodemesh::tls {
namespace {

void free_handshake(void*, void* pointer, CRYPTO_EX_DATA*, int, long, void*) {
  delete static_cast<Handshake*>(pointer);
}

int slot() {
  static const int index = SSL_get_ex_new_index(0, nullptr, nullptr, nullptr, free_handshake);
  return index;
}

Alpn negotiated(const SSL* ssl) {
  const unsigned char* data = nullptr;
  unsigned int size = 0;
  SSL_get0_alpn_selected(ssl, &data, &size);
  std::string_view name(reinterpret_cast<const char*>(data), size);
  return name == "nm1" ? Alpn::nm1 : name == "h2" ? Alpn::h2 : Alpn::none;
}

Reason reason_of(unsigned long code) {
  if (ERR_GET_LIB(code) != ERR_LIB_SSL) return Reason::TLS_FAILED;
  switch (ERR_GET_REASON(code)) {
    case SSL_R_PEER_DID_NOT_RETURN_A_CERTIFICATE:
      return Reason::PEER_CERT_MISSING;
    case SSL_R_NO_APPLICATION_PROTOCOL:
    case SSL_AD_REASON_OFFSET + SSL_AD_NO_APPLICATION_PROTOCOL:
      return Reason::ALPN_MISMATCH;
    default:
      return Reason::TLS_FAILED;
  }
}

}  // namespace

void attach(SSL* ssl, Handshake handshake) {
  SSL_set_ex_data(ssl, slot(), new Handshake(std::move(handshake)));
}

Handshake* handshake_of(const SSL* ssl) {
  return static_cast<Handshake*>(SSL_get_ex_data(ssl, slot()));
}

void refuse(SSL* ssl, Reason reason, std::string message) {
  Handshake* handshake = handshake_of(ssl);
  if (!handshake->refused) handshake->refused = Error{reason, std::move(message)};
}

const Peer* peer_of(const SSL* ssl) {
  Handshake* handshake = handshake_of(ssl);
  return handshake != nullptr && handshake->finished ? &handshake->peer : nullptr;
}

Result<const Peer*> finish_handshake(SSL* ssl) {
  Handshake* handshake = handshake_of(ssl);
  if (handshake->finished) return &handshake->peer;
  handshake->peer.alpn = negotiated(ssl);
  if (handshake->peer.alpn == Alpn::none)
    return fail(Reason::ALPN_MISMATCH, "the peer agreed to neither nm1 nor h2");
  handshake->peer.resumed = SSL_session_reused(ssl) == 1;
  if (handshake->peer.resumed) handshake->peer.identity = handshake->resumable;
  if (!handshake->peer.identity) return fail(Reason::PEER_CERT_MISSING, "the peer proved no identity");
  if (auto valid = handshake->verifier->still_valid(*handshake->peer.identity); !valid) {
    return std::unexpected(valid.error());
  }
  if (handshake->accepted && !any_matches(*handshake->accepted, handshake->peer.identity->id)) {
    return fail(Reason::PEER_ID_MISMATCH,
                "the server is " + handshake->peer.identity->uri + ", which is not accepted here");
  }
  handshake->finished = true;
  handshake->resumable.reset();
  return &handshake->peer;
}

bool send_ticket(SSL* ssl) {
  const Peer* peer = peer_of(ssl);
  if (peer == nullptr || !SSL_is_server(ssl) || peer->alpn != Alpn::nm1 || peer->resumed) return false;
  if ((SSL_get_options(ssl) & SSL_OP_NO_TICKET) != 0 || SSL_new_session_ticket(ssl) != 1) return false;
  bool sent = SSL_do_handshake(ssl) == 1;
  ERR_clear_error();
  return sent;
}

Error handshake_error(SSL* ssl) {
  unsigned long code = ERR_peek_error();  // the oldest is the cause, later ones are consequences
  Handshake* handshake = handshake_of(ssl);
  if (handshake != nullptr && handshake->refused) {
    ERR_clear_error();
    return *handshake->refused;
  }
  Reason reason = reason_of(code);
  const char* text = code == 0 ? nullptr : ERR_reason_error_string(code);
  std::string message = fmt::format("TLS {} {}: {}", SSL_is_server(ssl) ? "server" : "client",
                                    SSL_in_init(ssl) ? "handshake" : "connection",
                                    text ? text : "the peer closed the connection");
  ERR_clear_error();
  return Error{reason, std::move(message)};
}

std::string encode_peer(const PeerIdentity& peer) {
  int64_t numbers[3] = {WallClock::to_time_t(peer.not_before), WallClock::to_time_t(peer.not_after),
                        static_cast<int64_t>(peer.trust_generation)};
  std::string out(reinterpret_cast<const char*>(numbers), sizeof numbers);
  return out + peer.uri;
}

std::optional<PeerIdentity> decode_peer(std::string_view data) {
  int64_t numbers[3];
  if (data.size() < sizeof numbers) return std::nullopt;
  std::memcpy(numbers, data.data(), sizeof numbers);
  auto id = SpiffeId::parse(data.substr(sizeof numbers));
  if (!id) return std::nullopt;
  PeerIdentity out{.id = std::move(*id), .uri = std::string(data.substr(sizeof numbers))};
  out.not_before = WallClock::from_time_t(numbers[0]);
  out.not_after = WallClock::from_time_t(numbers[1]);
  out.trust_generation = static_cast<uint64_t>(numbers[2]);
  return out;
}

}  // namespace nodemesh::tls

// What one connection's handshake knows: hung on the SSL object, freed with it. For the files of this folder
// only; others use context.h.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "tls/context.h"

namespace nodemesh::tls {

struct Handshake {
  Verifier* verifier = nullptr;
  ServerContext* server = nullptr;  // one of these two
  ClientContext* client = nullptr;
  std::shared_ptr<const Credential> credential;
  std::shared_ptr<const AcceptedPeers> accepted;  // null at a server
  std::string session_key;
  std::shared_ptr<const PeerIdentity> resumable;  // of the session offered or the ticket opened
  std::optional<Error> refused;                   // the first verdict of a callback
  Peer peer;
  bool finished = false;
};

void attach(SSL* ssl, Handshake handshake);
Handshake* handshake_of(const SSL* ssl);
// Notes why a callback ends the handshake; the first reason stays.
void refuse(SSL* ssl, Reason reason, std::string message);

// A peer's identity inside a session ticket, which only our own processes can read or write.
std::string encode_peer(const PeerIdentity& peer);
std::optional<PeerIdentity> decode_peer(std::string_view data);

}  // namespace nodemesh::tls

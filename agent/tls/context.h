// The TLS settings of the mesh connection, one ServerContext and one ClientContext per worker (OpenSSL 3.0's
// locks are slow when shared): TLS 1.3 only, AES-128-GCM first, X25519 then P-256, client certificate
// mandatory, ALPN nm1 or h2, no SNI, resumption between our own agents (nm1) only. They make SSL objects with
// the certificate of one credential set; the caller attaches its BIOs and drives the handshake. Everything
// here belongs to one worker's thread.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <string>
#include <string_view>

#include "base/clock.h"
#include "base/reason.h"
#include "tls/credential.h"
#include "tls/openssl.h"
#include "tls/spiffe.h"
#include "tls/verify.h"

namespace nodemesh::tls {

enum class Alpn : uint8_t { none, h2, nm1 };

// Who is at the other end, after a handshake that finish_handshake() accepted.
struct Peer {
  std::shared_ptr<const PeerIdentity> identity;
  Alpn alpn = Alpn::none;
  bool resumed = false;
};

// Secrets that seal session tickets; the same for all workers of a process, and for its successor by the
// vault. Two generations, so that tickets outlive one rotation. Published immutable by the control thread.
struct TicketKeys {
  // Who comes to know a key can read what the tickets of two such periods protect.
  static constexpr auto kPeriod = std::chrono::hours(12);
  struct Key {
    std::array<uint8_t, 16> name;
    std::array<uint8_t, 32> aes;
    std::array<uint8_t, 32> hmac;
    bool operator==(const Key&) const = default;
  };
  Key current;
  Key previous;
  int64_t made = 0;  // `current`, in Unix seconds
  bool operator==(const TicketKeys&) const = default;
  // True when `current` has served its period, or was made in what is now the future (a clock set back).
  bool due(WallClock::time_point now) const;
  static Result<std::shared_ptr<const TicketKeys>> random(WallClock::time_point now);
  // A fresh current key; the current one becomes the previous.
  static Result<std::shared_ptr<const TicketKeys>> rotate(const TicketKeys& old, WallClock::time_point now);
};

class ServerContext {
 public:
  // `verifier` outlives the context and everything it made. `keys` null: no tickets are issued.
  static Result<std::unique_ptr<ServerContext>> create(Verifier& verifier,
                                                       std::shared_ptr<const TicketKeys> keys);
  ~ServerContext();
  // An SSL in accept state that presents `credential` (kept alive by the SSL). NO_IDENTITY when it is null or
  // past its time. The SSL may not outlive the context.
  Result<SslPtr> accept(std::shared_ptr<const Credential> credential);
  void set_ticket_keys(std::shared_ptr<const TicketKeys> keys);

 private:
  friend struct ContextCallbacks;
  explicit ServerContext(Verifier& verifier) : verifier_(verifier) {}
  Verifier& verifier_;
  SslCtxPtr ctx_;
  std::shared_ptr<const TicketKeys> keys_;
};

class ClientContext {
 public:
  // `sessions`: how many resumable sessions are kept (one per peer), the oldest leaves first.
  static Result<std::unique_ptr<ClientContext>> create(Verifier& verifier, size_t sessions = 1024);
  ~ClientContext();
  // An SSL in connect state that presents `credential` and accepts only a server of `accepted`. `session_key`
  // names what a session may be reused for: {source pod, its identity, peer address, accepted identities};
  // empty: never resume. NO_IDENTITY as above.
  Result<SslPtr> connect(std::shared_ptr<const Credential> credential,
                         std::shared_ptr<const AcceptedPeers> accepted, std::string session_key);
  // Drops the sessions whose key starts with `prefix`, e.g. when the source pod is gone.
  void forget_sessions(std::string_view prefix);
  size_t sessions() const { return cache_.size(); }

 private:
  friend struct ContextCallbacks;
  struct Resumable {
    SessionPtr session;
    std::shared_ptr<const PeerIdentity> peer;
    std::list<const std::string*>::iterator age;
  };
  explicit ClientContext(Verifier& verifier) : verifier_(verifier) {}
  void offer_session(SSL* ssl);
  void keep_session(SSL* ssl, SSL_SESSION* session);
  void drop_session(const std::string& key);

  Verifier& verifier_;
  SslCtxPtr ctx_;
  size_t limit_ = 0;
  std::map<std::string, Resumable, std::less<>> cache_;
  std::list<const std::string*> oldest_first_;
};

// To be called once when SSL_do_handshake (or the first successful read or write) says the handshake is
// complete and before any application byte is used: ALPN agreed, peer verified, a resumed peer still valid
// and still accepted. On error close the connection; the Reason says why.
Result<const Peer*> finish_handshake(SSL* ssl);
// After SSL_do_handshake or a later SSL_read failed: why, and the thread's error queue emptied. Knows the
// verdicts of the callbacks (PEER_CERT_MISSING, PEER_ID_INVALID, ALPN_MISMATCH …) and the peer's alert;
// TLS_FAILED otherwise.
Error handshake_error(SSL* ssl);
// At a server, for a connection that has proved to last (a few seconds old): sends the client one session
// ticket, so that it can come back without certificates. Not part of the handshake, because sealing a ticket
// costs OpenSSL 3.0 a sixth of one, and most connections never return. Does nothing unless the peer is one of
// ours (nm1) and made a full handshake. Writes through the SSL as SSL_write does; false: nothing was sent.
bool send_ticket(SSL* ssl);
// The finished handshake's peer; null before. Valid while `ssl` lives.
const Peer* peer_of(const SSL* ssl);

}  // namespace nodemesh::tls

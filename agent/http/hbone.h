// One HBONE connection: TCP, TLS and HTTP/2 driven by the worker's reactor, the same object for both roles.
// Everything that became ready in a turn is gathered into few TLS records and one send at its end; everything
// that one recv brought is handed on stream by stream. It holds no buffer while it is idle. It ends itself on
// errors, lost peers (PING), and when a drain is complete; its owner learns of it once and destroys it.
// Worker thread only.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "base/fd.h"
#include "http/h2_session.h"
#include "io/buffers.h"
#include "io/reactor.h"
#include "tls/context.h"
#include "tls/stream.h"

namespace nodemesh::http {

struct HboneTimes {
  milliseconds connect{10'000};
  milliseconds handshake{10'000};
  milliseconds ping_interval{10'000};
  milliseconds ping_timeout{20'000};
  milliseconds idle{60'000};  // client: without a stream
};

class HboneConnection;

class HboneOwner {
 public:
  // Server: a request stream; see H2SessionOwner::on_request.
  virtual void on_hbone_request(HboneConnection& connection, int32_t id, const HeaderBlock& headers,
                                bool end) = 0;
  // Server: a request that never became one, for its header block; its stream is reset already.
  virtual void on_hbone_request_refused(HboneConnection&, const Error&) {}
  // The handshake is done (`error` NONE) or failed; for metrics. `took` since the connection object was made.
  virtual void on_hbone_handshake(HboneConnection& connection, const Error& error,
                                  Monotonic::duration took) = 0;
  // Take no new streams on it (GOAWAY, drain, lost trust).
  virtual void on_hbone_draining(HboneConnection& connection) = 0;
  // It is over and no call follows; its streams have been told. The owner destroys it, at the earliest after
  // this call has returned to the reactor.
  virtual void on_hbone_closed(HboneConnection& connection, const Error& error) = 0;

 protected:
  ~HboneOwner() = default;
};

class HboneConnection final : private io::EventHandler, private H2SessionOwner {
 public:
  // `fd` connected (server) or still connecting (client), `ssl` in the role's state. `limits` outlive it.
  HboneConnection(H2Session::Role role, io::Reactor& reactor, io::Buffers& buffers, Fd fd, tls::SslPtr ssl,
                  HboneOwner& owner, const H2Limits& limits, const HboneTimes& times);
  ~HboneConnection();

  // Registers with the reactor. On error the object is good for destruction only.
  Result<> start();

  // Server: from the finished handshake on.
  H2Session& session() { return *session_; }
  bool ready() const { return state_ == State::open; }
  bool draining() const { return draining_; }
  const tls::Peer* peer() const { return peer_; }
  // "TLSv1.3" and the cipher's standard name once the handshake is done; literals of the library.
  const char* tls_version() const;
  const char* tls_cipher() const;
  int fd() const { return tls_.fd(); }
  // Bytes of memory for what the peer does not take, counted in `account` from charge_to() on.
  size_t held() const { return tls_.held(); }
  void charge_to(io::HeldAccount& account) { tls_.charge_to(account); }
  const Error& error() const { return error_; }

  // Asks for a flush at the end of this turn; after open(), respond(), resume(), reset(), consume().
  void schedule_flush() { flush_.schedule(reactor_); }
  // The peer's certificate has run out: its open streams may end in peace, new ones need a new connection.
  bool peer_expired(WallClock::time_point now) const {
    return peer_ != nullptr && now >= peer_->identity->not_after;
  }
  // No new streams; GOAWAY now, close when the open ones have ended.
  void drain();
  // After the roots have changed: ends the connection if the peer's chain does not verify any more.
  void verify_again(tls::Verifier& verifier, tls::PeerRole peer_role);
  // Ends it at the end of this turn, open streams included.
  void close(Error error);

 private:
  enum class State { connecting, handshaking, open, lingering, closed };
  void on_events(uint32_t events) override;
  void on_request(int32_t id, const HeaderBlock& headers, bool end) override;
  void on_request_refused(const Error& error) override;
  void on_goaway() override;
  void on_ping_ack(H2Ping kind) override;
  bool finish_connect(uint32_t events);
  void advance_handshake();
  void receive();
  void flush();
  void refuse_new_streams();
  void finish();
  void discard();
  void leave();
  void on_timer();
  void tick_open();

  const H2Session::Role role_;
  State state_;
  bool draining_ = false, refusing_ = false, ping_sent_ = false, ticket_sent_ = false, closing_ = false,
       again_ = false;
  io::Reactor& reactor_;
  io::Buffers& buffers_;
  HboneOwner& owner_;
  const HboneTimes& times_;
  tls::Stream tls_;
  const H2Limits& limits_;
  std::optional<H2Session> session_;  // a server's begins with the end of the handshake, which may never come
  const tls::Peer* peer_ = nullptr;
  Error error_{Reason::NONE, {}};
  size_t discarded_ = 0;
  Monotonic::time_point started_, ping_at_{}, drain_at_{}, busy_at_;
  // Lets work posted for a later turn notice that the connection is gone.
  std::shared_ptr<int> alive_ = std::make_shared<int>(0);
  io::Timer timer_;
  io::Deferred flush_;
  io::Deferred end_;
};

}  // namespace nodemesh::http

// The fifth step: bytes from one end to the other until both directions have ended. TcpRelay joins two
// sockets, TunnelRelay a socket and a stream of an HBONE connection. Both read only what the other side can
// take, pass half closes on in order, and keep an abrupt end abrupt: a reset or a lost tunnel becomes RST at
// the other end, never FIN, because truncation must not look like completion. Owned by a session; worker
// thread only.
#pragma once

#include <algorithm>

#include "base/reason.h"
#include "http/hbone.h"
#include "io/buffers.h"
#include "io/tcp_end.h"
#include "telemetry/record.h"

namespace nodemesh::proxy {

class RelayOwner {
 public:
  // The sockets are closed. The owner may destroy the relay in this call. Reason NONE: both directions ended
  // well.
  virtual void on_relay_done(const Error& error) = 0;
  // TunnelRelay, client: the peer answered the CONNECT (200), or the stream ended before that.
  virtual void on_tunnel_accepted(const http::HeaderBlock&) {}
  virtual void on_tunnel_refused(const Error&, bool /*processed*/) {}
  // A connect() begun on one of the relay's ends is over; 0 or an errno.
  virtual void on_relay_connected(int error) = 0;

 protected:
  ~RelayOwner() = default;
};

class TcpRelay final : private io::TcpEndOwner {
 public:
  // What either end keeps is counted in `account`, unless that is null; TunnelRelay likewise.
  TcpRelay(io::Reactor& reactor, io::Buffers& buffers, telemetry::Record& record, RelayOwner& owner,
           io::HeldAccount* account = nullptr)
      : client(reactor, *this, account),
        server(reactor, *this, account),
        reactor_(reactor),
        buffers_(buffers),
        record_(record),
        owner_(owner) {}

  // Both ends are connected: begin.
  void start();
  // Ends it with RST on both sides, without on_relay_done.
  void abort();

  Monotonic::time_point active_at() const { return std::max(client.active_at(), server.active_at()); }
  size_t held() const { return client.held() + server.held(); }

  io::TcpEnd client;
  io::TcpEnd server;

 private:
  void on_readable(io::TcpEnd& end) override;
  void on_drained(io::TcpEnd& end, size_t bytes) override;
  void on_connected(io::TcpEnd& end, int error) override;
  void on_broken(io::TcpEnd& end) override;
  bool pump(io::TcpEnd& from, io::TcpEnd& to);
  void finish(const Error& error);

  io::Reactor& reactor_;
  io::Buffers& buffers_;
  telemetry::Record& record_;
  RelayOwner& owner_;
  void pump_again(io::TcpEnd& from, io::TcpEnd& to);

  std::shared_ptr<int> alive_;
  bool started_ = false;
  bool again_[2] = {};  // what is left of a direction (client's first) is posted
};

class TunnelRelay final : public http::H2Stream, private io::TcpEndOwner {
 public:
  enum class Role { client, server };  // of the tunnel; a client's socket is the application that dialled
  TunnelRelay(Role role, io::Reactor& reactor, telemetry::Record& record, RelayOwner& owner,
              io::HeldAccount* account = nullptr)
      : tcp(reactor, *this, account), role_(role), record_(record), owner_(owner) {}
  ~TunnelRelay();

  // The stream is (client: about to be) opened on `connection`, which tells on_close before it dies.
  void attach(http::HboneConnection& connection) {
    connection_ = &connection;
    closed_ = answered_ = peer_ended_ = false;
  }
  // Client: bytes may flow before the answer, since the peer is one of ours and buffers them.
  void allow_early_data() { flowing_ = true; }
  // Server: the application is connected and 200 is on its way.
  void start();
  void abort(http::H2Error error);  // RST on both sides, without on_relay_done

  http::HboneConnection* connection() { return connection_; }
  io::TcpEnd tcp;

 private:
  void on_headers(const http::HeaderBlock& headers, bool end) override;
  void on_data(std::span<const iovec> pieces, size_t bytes) override;
  void on_end() override;
  Pull pull(std::span<uint8_t> out) override;
  void on_close(http::H2Error error, bool processed) override;
  void on_readable(io::TcpEnd& end) override;
  void on_drained(io::TcpEnd& end, size_t bytes) override;
  void on_connected(io::TcpEnd& end, int error) override;
  void on_broken(io::TcpEnd& end) override;
  void give_back(size_t bytes);
  void finish(const Error& error);

  const Role role_;
  bool flowing_ = false, answered_ = false, closed_ = false, peer_ended_ = false, done_ = false;
  telemetry::Record& record_;
  RelayOwner& owner_;
  http::HboneConnection* connection_ = nullptr;
};

}  // namespace nodemesh::proxy

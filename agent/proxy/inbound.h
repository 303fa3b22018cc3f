// Connections that reach a pod from outside: peers of the mesh over HBONE, where each CONNECT stream is one
// connection, and plaintext. Both are authorised at this, the server's node, and delivered to the application
// from the client's address. Worker thread only.
#pragma once

#include <memory>

#include "proxy/accept.h"
#include "proxy/decide.h"
#include "proxy/relay.h"
#include "proxy/session.h"
#include "upstream/stock.h"

namespace nodemesh::proxy {

// One HBONE connection that a peer made to a pod.
class InboundTunnel final : private http::HboneOwner {
 public:
  static void begin(Worker& worker, PodState& pod, Accepted accepted);
  ~InboundTunnel();
  http::HboneConnection& connection() { return *connection_; }

 private:
  InboundTunnel(Worker& worker, PodState& pod, Accepted accepted);
  void on_hbone_request(http::HboneConnection& connection, int32_t id, const http::HeaderBlock& headers,
                        bool end) override;
  void on_hbone_request_refused(http::HboneConnection&, const Error& error) override {
    record_refusal(local_, error);
  }
  void on_hbone_handshake(http::HboneConnection& connection, const Error& error,
                          Monotonic::duration took) override;
  void on_hbone_draining(http::HboneConnection&) override {}
  void on_hbone_closed(http::HboneConnection& connection, const Error& error) override;
  void refuse(int32_t id, const SockAddr& destination, const Error& error);
  void record_refusal(const SockAddr& destination, const Error& error);

  Worker& worker_;
  PodState& pod_;
  const SockAddr peer_, local_;
  telemetry::Counted count_;
  std::unique_ptr<http::HboneConnection> connection_;
};

// What both kinds of inbound connection share: who may reach the application.
class InboundSession : public Session {
 protected:
  InboundSession(Worker& worker, PodState& pod, const SockAddr& peer, const SockAddr& destination);
  model::PeerFacts facts() const;
  // The decision; fills the record's labels.
  Result<> authorise();
  // By NetworkPolicies, for what comes through a tunnel; plaintext a CNI has seen itself.
  Result<> permitted() const;
  void redecide() override;
};

class TunnelSession final : public InboundSession, private RelayOwner, private upstream::SocketWaiter {
 public:
  // Becomes the owner of stream `id`, or refuses it.
  static void begin(Worker& worker, PodState& pod, http::HboneConnection& connection, int32_t id,
                    const SockAddr& peer, const SockAddr& destination);
  ~TunnelSession() override { stop_waiting(); }
  void abort(const Error& error) override;
  Monotonic::time_point active_at() const override { return relay_.tcp.active_at(); }
  size_t held() const override { return relay_.tcp.held(); }

 private:
  TunnelSession(Worker& worker, PodState& pod, http::HboneConnection& connection, const SockAddr& peer,
                const SockAddr& destination);
  void connect();
  void stop_waiting();
  void refuse(const Error& error);
  void on_socket(Fd socket) override;
  void on_no_socket(const Error& error) override { refuse(error); }
  void on_relay_connected(int error) override;
  void on_relay_done(const Error& error) override;

  bool waiting_ = false, answered_ = false;
  io::Timer timer_;
  TunnelRelay relay_;
  telemetry::Counted stream_count_;
};

class PlaintextSession final : public InboundSession, private RelayOwner, private upstream::SocketWaiter {
 public:
  static void begin(Worker& worker, PodState& pod, Accepted accepted);
  ~PlaintextSession() override { stop_waiting(); }
  void abort(const Error& error) override;
  Monotonic::time_point active_at() const override { return relay_.active_at(); }
  size_t held() const override { return relay_.held(); }

 private:
  PlaintextSession(Worker& worker, PodState& pod, Accepted accepted);
  void run();
  void connect();
  void stop_waiting();
  void on_socket(Fd socket) override;
  void on_no_socket(const Error& error) override { abort(error); }
  void on_relay_connected(int error) override;
  void on_relay_done(const Error& error) override { end(error); }

  Fd client_;
  bool waiting_ = false;
  io::Timer timer_;
  TcpRelay relay_;
};

}  // namespace nodemesh::proxy

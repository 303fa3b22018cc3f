// A captured connection of a local application on its way out: accept → identify → decide → connect → relay →
// record. Worker thread only.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <variant>

#include "proxy/accept.h"
#include "proxy/decide.h"
#include "proxy/relay.h"
#include "proxy/session.h"
#include "upstream/pool.h"

namespace nodemesh::proxy {

class OutboundSession final : public Session,
                              private RelayOwner,
                              private upstream::SocketWaiter,
                              private upstream::TunnelWaiter {
 public:
  // Runs the first steps; may hand the connection to the worker that owns the tunnel it needs.
  static void begin(Worker& worker, Accepted accepted);
  ~OutboundSession() override { stop_waiting(); }

  void abort(const Error& error) override;
  void redecide() override;
  Monotonic::time_point active_at() const override;
  size_t held() const override;

 private:
  OutboundSession(Worker& worker, PodState& pod, Accepted accepted);
  void run(std::optional<OutboundDecision> decided);
  Result<> decide(std::optional<OutboundDecision>& decided);
  void own_source();
  bool hand_over(const OutboundDecision& decided);
  void connect(const OutboundDecision& decided);
  void connect_same_node();
  void take_application_socket(PodState& server);
  void connect_passthrough();
  void connect_hbone();
  // Nothing is known of the server yet: dials whoever may be there, and goes another way as soon as a
  // snapshot knows one.
  void connect_unknown();
  void ask_again();
  Result<OutboundDecision> decide_again(const SockAddr& dialled);
  void give_up_asking();
  bool unproven(const Error& why);
  // The shortcut evaluates the server's policies here, since no second relay will.
  model::PeerFacts facts() const;
  // NetworkPolicies of the client and, where no tunnel asks them, of the server.
  Result<> permitted() const;
  void fail(const Error& error);
  void stop_waiting();

  void on_socket(Fd socket) override;
  void on_no_socket(const Error& error) override { fail(error); }
  void on_tunnel(http::HboneConnection& connection) override;
  void on_no_tunnel(const Error& error) override;
  void on_tunnel_accepted(const http::HeaderBlock& headers) override;
  void on_tunnel_refused(const Error& error, bool processed) override;
  void on_relay_connected(int error) override;
  void on_relay_done(const Error& error) override;
  void fill_tls(const http::HboneConnection& connection);

  Fd client_;
  SockAddr target_;
  Transport transport_ = Transport::passthrough;
  const Monotonic::time_point begun_;
  bool waiting_socket_ = false, waiting_tunnel_ = false, retried_ = false;
  uint64_t server_cookie_ = 0;  // same node: the server pod
  model::Shared<model::Workload> server_;
  upstream::EndpointHold hold_;
  io::Timer timer_;
  // While nothing is known of the server: until when it may become known, and why HBONE to it failed.
  std::optional<Monotonic::time_point> give_up_at_;
  std::string last_try_;
  telemetry::Counted stream_count_;
  std::variant<std::monostate, TcpRelay, TunnelRelay> relay_;
};

}  // namespace nodemesh::proxy

// The fourth step: the calls that make the second half of a connection. Worker thread only.
#pragma once

#include <memory>
#include <random>
#include <string>

#include "base/addr.h"
#include "http/hbone.h"
#include "io/tcp_end.h"
#include "model/workload.h"
#include "proxy/relay.h"
#include "telemetry/record.h"

namespace nodemesh::proxy {

struct PodState;

// The workload's SPIFFE id, shared without a copy.
std::shared_ptr<const std::string> identity_of(const model::Shared<model::Workload>& workload);

// Connects a fresh `in` socket of `pod` to its application at `target`, from the client's address where the
// pod's namespace is prepared for that, so that the application sees who called. Returns as TcpEnd::connect.
int connect_application(io::TcpEnd& end, Fd socket, const SockAddr& target, const Addr& client,
                        const PodState& pod);

// True when `target` is one of the mesh's own listening sockets in that pod.
bool is_own_listener(const PodState& pod, const SockAddr& target);

// Opens a CONNECT stream for `target` on a connection of `source`'s, with Istio's headers (baggage,
// forwarded, traceparent).
Result<> open_tunnel_stream(http::HboneConnection& connection, TunnelRelay& relay, const SockAddr& target,
                            const telemetry::Record& record, const PodState& source, std::mt19937_64& random);

// W3C baggage as ztunnel writes it: k8s.namespace.name, k8s.<type>.name, service.name, service.version and so
// on.
std::string baggage_of(const model::Workload& workload);
// W3C traceparent, version 00, not sampled.
std::string make_traceparent(std::mt19937_64& random);

}  // namespace nodemesh::proxy

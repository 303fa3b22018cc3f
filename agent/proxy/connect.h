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
// pod's namespace is prepared for that, so that the application sees who called. Returns as TcpEnd::connect;
// EADDRNOTAVAIL: the port it drew is in use between these two, try again with another socket. The port is one
// of kBorrowedPorts, and after kMostClashes of the kernel's choice.
//
// The client may have connections of its own to the same address and port: plaintext that we hold, or that
// comes now. Were ours to have the port of one of them, its SYN would meet that one, and one of the two end.
// All namespaces of a kernel draw ports from one sequence, so those of a client on this node are the
// likeliest of all. Hence a range that clients do not use: Linux's begins at 32768.
struct PortRange {
  uint16_t first, last;
};
inline constexpr PortRange kBorrowedPorts{10240, 32767};
inline constexpr int kMostClashes = 4;
int connect_application(io::TcpEnd& end, Fd socket, const SockAddr& target, const Addr& client,
                        const PodState& pod, std::mt19937_64& random, int clashes);

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

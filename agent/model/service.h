// A Service with its ports and endpoints resolved. Immutable values, shared by snapshots; any thread.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/addr.h"
#include "model/origin.h"
#include "model/shared.h"
#include "model/workload.h"

namespace nodemesh::model {

// What a port speaks as far as anyone declared it.
enum class Protocol : uint8_t {
  unspecified,
  tcp,
  tls,
  https,
  http,
  http2,
  grpc,
  grpc_web,
  mongo,
  mysql,
  redis,
  udp
};
std::string_view protocol_name(Protocol protocol);

enum class LbPolicy : uint8_t { least_request, round_robin, random };
std::string_view lb_policy_name(LbPolicy policy);

struct Endpoint {
  Addr address;
  uint16_t port = 0;          // of the endpoint, i.e. the target port
  Shared<Workload> workload;  // null when no Pod is known for it
  bool ready = true;
  bool serving = true;
  bool terminating = false;
  Text node;
  Text zone;

  bool operator==(const Endpoint&) const = default;
  SockAddr target() const { return {address, port}; }
};

struct ServicePort {
  std::string name;
  uint16_t port = 0;
  Protocol protocol = Protocol::unspecified;
  LbPolicy lb = LbPolicy::least_request;
  Origin lb_origin;  // the DestinationRule; empty for the default
  // Those that may get new connections first: `usable_v4` IPv4 ones, then `usable_v6` IPv6 ones, then the
  // others. Usable: ready ones; if there is none, serving ones that terminate; all with
  // publishNotReadyAddresses; with internalTrafficPolicy Local only those on the snapshot's node.
  std::vector<Endpoint> endpoints;
  uint32_t usable_v4 = 0;
  uint32_t usable_v6 = 0;

  bool operator==(const ServicePort&) const = default;
  // Usable endpoints of the family of the address that was dialled, or of the other family if that has none.
  std::span<const Endpoint> usable(const Addr& dialled) const;
};

struct Service {
  Origin origin;
  std::string ns;
  std::string name;
  std::string host;  // "name.ns.svc.cluster.local"
  std::vector<Addr>
      vips;  // cluster, external and load-balancer addresses; empty when headless or ExternalName
  bool headless = false;
  std::string external_name;  // CNAME target of an ExternalName Service
  bool publish_not_ready = false;
  bool local_only = false;                                 // internalTrafficPolicy: Local
  std::optional<std::chrono::seconds> client_ip_affinity;  // sessionAffinity ClientIP and its timeout
  std::vector<ServicePort> ports;                          // TCP only, in the object's order

  bool operator==(const Service&) const = default;
  const ServicePort* find_port(uint16_t port) const;
  const ServicePort* find_port(std::string_view port_name) const;
};

}  // namespace nodemesh::model

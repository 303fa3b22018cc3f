#include "model/workload.h"

#include <algorithm>

#include "model/service.h"

namespace nodemesh::model {

std::string_view mesh_name(Mesh mesh) {
  static constexpr std::string_view kNames[] = {"none", "hbone", "unknown"};
  return kNames[static_cast<size_t>(mesh)];
}

std::string spiffe_id(std::string_view trust_domain, std::string_view ns, std::string_view service_account) {
  std::string id = "spiffe://";
  id.append(trust_domain).append("/ns/").append(ns).append("/sa/").append(service_account);
  return id;
}

std::string_view protocol_name(Protocol protocol) {
  static constexpr std::string_view kNames[] = {"unspecified", "tcp",      "tls",   "https", "http",  "http2",
                                                "grpc",        "grpc-web", "mongo", "mysql", "redis", "udp"};
  return kNames[static_cast<size_t>(protocol)];
}

std::string_view lb_policy_name(LbPolicy policy) {
  static constexpr std::string_view kNames[] = {"LEAST_REQUEST", "ROUND_ROBIN", "RANDOM"};
  return kNames[static_cast<size_t>(policy)];
}

std::span<const Endpoint> ServicePort::usable(const Addr& dialled) const {
  std::span all(endpoints);
  auto v4 = all.subspan(0, usable_v4);
  auto v6 = all.subspan(usable_v4, usable_v6);
  bool first_v4 = dialled.is_v4() ? !v4.empty() : v6.empty();
  return first_v4 ? v4 : v6;
}

const ServicePort* Service::find_port(uint16_t port) const {
  auto found = std::ranges::find(ports, port, &ServicePort::port);
  return found == ports.end() ? nullptr : &*found;
}

const ServicePort* Service::find_port(std::string_view port_name) const {
  auto found = std::ranges::find(ports, port_name, &ServicePort::name);
  return found == ports.end() ? nullptr : &*found;
}

}  // namespace nodemesh::model

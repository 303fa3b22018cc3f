// Reads Service and EndpointSlice; see core.h.
#include <algorithm>
#include <array>

#include "translate/core.h"

namespace nodemesh::translate {
namespace {

using kube::Fields;
using kube::Node;
using kube::Problems;
using kube::Severity;
using model::Protocol;

void add_vip(const Node& node, ServiceSpec& service, Problems& problems) {
  auto address = Addr::parse(node.text);
  if (!address || address->is_unspecified()) {
    report(problems, Severity::error, node, "\"" + node.text + "\" is not an IP address",
           "write an IPv4 or IPv6 address, or None for a headless Service");
  } else if (std::ranges::find(service.vips, *address) == service.vips.end()) {
    service.vips.push_back(*address);
  }
}

void read_addresses(Fields& spec, ServiceSpec& service, Problems& problems) {
  const Node* single = spec.any("clusterIP");
  auto many = spec.list("clusterIPs");
  auto is_none = [](const Node& node) { return node.text == "None"; };
  service.headless = (single && is_none(*single)) || std::ranges::any_of(many, is_none);
  if (service.headless) return;
  if (single && !single->text.empty()) add_vip(*single, service, problems);
  for (const auto& item : many) add_vip(item, service, problems);
  service.cluster_vips = service.vips.size();
  for (const auto& item : spec.list("externalIPs")) add_vip(item, service, problems);
}

void read_load_balancer(Fields& fields, ServiceSpec& service, Problems& problems) {
  const Node* status = fields.map("status");
  const Node* balancer = status ? status->find("loadBalancer") : nullptr;
  Fields load_balancer(balancer, problems);
  for (const auto& item : load_balancer.maps("ingress")) {
    Fields ingress(&item, problems);
    ingress.ignore({"hostname", "ports"});
    const Node* ip = ingress.any("ip");
    // Proxy means that the load balancer must be passed through, so its address is not ours to answer for.
    if (ip && ingress.text("ipMode").value_or("VIP") == "VIP") add_vip(*ip, service, problems);
  }
}

void read_ports(Fields& spec, ServiceSpec& service, Problems& problems) {
  auto items = spec.maps("ports");
  for (const auto& item : items) {
    Fields port(&item, problems);
    auto number = port.integer("port", 1, 65535);
    auto name = port.text("name").value_or("");
    auto transport = port.text("protocol").value_or("TCP");
    auto protocol = declared_protocol(port.text("appProtocol").value_or(""), name);
    // Endpoints say the port that the target port resolves to, for each pod.
    port.ignore({"targetPort", "nodePort"});
    if (!number && !item.find("port")) port.missing("port", "write a number from 1 to 65535");
    if (name.empty() && items.size() > 1)
      port.missing("name", "name every port of a Service that has several");
    if (transport != "TCP" && transport != "UDP" && transport != "SCTP") {
      port.error("protocol", "unknown value \"" + transport + "\"", "use one of TCP, UDP, SCTP");
    }
    auto same = [&](const ServiceSpec::Port& other) {
      return other.port == number || (!name.empty() && other.name == name);
    };
    if (transport != "TCP" || !number) continue;
    if (std::ranges::any_of(service.ports, same)) {
      port.error("port", "another port of this Service has the same number or name", "make both different");
    }
    service.ports.push_back({name, static_cast<uint16_t>(*number), protocol});
  }
}

void read_behaviour(Fields& spec, ServiceSpec& service, Problems& problems) {
  static constexpr std::array<std::pair<std::string_view, bool>, 2> kTraffic{
      {{"Cluster", false}, {"Local", true}}};
  static constexpr std::array<std::pair<std::string_view, bool>, 2> kAffinity{
      {{"None", false}, {"ClientIP", true}}};
  service.local_only = spec.one_of<bool>("internalTrafficPolicy", kTraffic).value_or(false);
  service.publish_not_ready = spec.boolean("publishNotReadyAddresses").value_or(false);
  bool affinity = spec.one_of<bool>("sessionAffinity", kAffinity).value_or(false);
  Fields config(spec.map("sessionAffinityConfig"), problems);
  Fields client_ip(config.map("clientIP"), problems);
  auto timeout = client_ip.integer("timeoutSeconds", 1, 86400).value_or(10800);
  if (affinity) service.client_ip_affinity = std::chrono::seconds(timeout);
  spec.ignore({"selector", "ipFamilies", "ipFamilyPolicy", "externalTrafficPolicy", "healthCheckNodePort",
               "loadBalancerIP", "loadBalancerClass", "loadBalancerSourceRanges",
               "allocateLoadBalancerNodePorts"});
  spec.unsupported({"trafficDistribution"});
}

void read_endpoint(const Node& node, const Fields& whole, EndpointSliceSpec& slice, Problems& problems) {
  Fields fields(&node, whole);
  EndpointSliceSpec::Endpoint endpoint{.line = node.line};
  Fields conditions(fields.map("conditions"), problems);
  endpoint.ready = conditions.boolean("ready").value_or(true);
  endpoint.serving = conditions.boolean("serving").value_or(endpoint.ready);
  endpoint.terminating = conditions.boolean("terminating").value_or(false);
  endpoint.node = fields.shared_text("nodeName");
  endpoint.zone = fields.shared_text("zone");
  Fields target(fields.map("targetRef"), problems);
  auto kind = target.text("kind").value_or("");
  auto name = target.text("name").value_or("");
  if (kind == "Pod") endpoint.pod = name;
  target.ignore({"namespace", "uid", "apiVersion", "resourceVersion", "fieldPath"});
  fields.ignore({"hostname", "hints", "deprecatedTopology"});
  auto addresses = fields.list("addresses");
  if (addresses.empty()) return fields.missing("addresses", "write the endpoint's address");
  if (addresses.size() > 1) {
    fields.warn("addresses", "only the first address of an endpoint is used",
                "write one endpoint for each address");
  }
  auto address = Addr::parse(addresses[0].text);
  if (!address) {
    report(problems, Severity::error, addresses[0], "\"" + addresses[0].text + "\" is not an IP address",
           "write an address of the slice's addressType");
    return;
  }
  // Kubernetes refuses these too: an endpoint must not lead back into the client.
  if (address->is_loopback() || address->is_unspecified()) {
    report(problems, Severity::error, addresses[0], addresses[0].text + " cannot be an endpoint",
           "write a pod's address");
  }
  endpoint.address = *address;
  slice.endpoints.push_back(std::move(endpoint));
}

}  // namespace

Protocol declared_protocol(std::string_view app_protocol, std::string_view port_name) {
  static constexpr std::pair<std::string_view, Protocol> kNames[] = {{"tcp", Protocol::tcp},
                                                                     {"tls", Protocol::tls},
                                                                     {"https", Protocol::https},
                                                                     {"http", Protocol::http},
                                                                     {"http2", Protocol::http2},
                                                                     {"grpc", Protocol::grpc},
                                                                     {"mongo", Protocol::mongo},
                                                                     {"grpc-web", Protocol::grpc_web},
                                                                     {"mysql", Protocol::mysql},
                                                                     {"redis", Protocol::redis},
                                                                     {"udp", Protocol::udp},
                                                                     {"kubernetes.io/h2c", Protocol::http2},
                                                                     {"kubernetes.io/ws", Protocol::http},
                                                                     {"kubernetes.io/wss", Protocol::https}};
  auto lookup = [](std::string_view name) {
    auto found = std::ranges::find(kNames, name, &std::pair<std::string_view, Protocol>::first);
    return found == std::end(kNames) ? Protocol::unspecified : found->second;
  };
  if (!app_protocol.empty()) return lookup(app_protocol);
  if (port_name == "grpc-web" || port_name.starts_with("grpc-web-")) return Protocol::grpc_web;
  return lookup(port_name.substr(0, port_name.find('-')));
}

std::shared_ptr<const kube::Decoded> read_service(const kube::Object&, Fields& fields, Problems& problems) {
  static constexpr std::array<std::pair<std::string_view, bool>, 4> kTypes{
      {{"ClusterIP", false}, {"NodePort", false}, {"LoadBalancer", false}, {"ExternalName", true}}};
  auto service = std::make_shared<ServiceSpec>();
  Fields spec(fields.map("spec"), problems);
  if (!spec) fields.missing("spec", "write the Service's spec");
  bool external = spec.one_of<bool>("type", kTypes).value_or(false);
  auto external_name = spec.text("externalName").value_or("");
  read_ports(spec, *service, problems);
  read_behaviour(spec, *service, problems);
  if (external) {
    service->external_name = external_name;
    if (external_name.empty()) spec.missing("externalName", "write the DNS name that the Service stands for");
    spec.ignore({"clusterIP", "clusterIPs", "externalIPs"});
  } else {
    read_addresses(spec, *service, problems);
  }
  read_load_balancer(fields, *service, problems);
  return service;
}

std::shared_ptr<const kube::Decoded> read_endpoint_slice(const kube::Object& object, Fields& fields,
                                                         Problems& problems) {
  enum class Family : uint8_t { v4, v6, name };
  static constexpr std::array<std::pair<std::string_view, Family>, 3> kFamilies{
      {{"IPv4", Family::v4}, {"IPv6", Family::v6}, {"FQDN", Family::name}}};
  auto slice = std::make_shared<EndpointSliceSpec>();
  slice->service = object.label("kubernetes.io/service-name");
  if (slice->service.empty()) {
    fields.warn("metadata", "no label kubernetes.io/service-name, so the slice belongs to no Service",
                "add the label with the Service's name");
  }
  auto family = fields.one_of<Family>("addressType", kFamilies);
  if (!fields.node()->find("addressType")) fields.missing("addressType", "write IPv4 or IPv6");
  if (family == Family::name) {
    fields.warn("addressType", "slices of names are not supported, the slice has no effect",
                "use IPv4 or IPv6");
    fields.ignore({"endpoints", "ports"});
    return slice;
  }
  auto endpoints = fields.maps("endpoints");
  slice->endpoints.reserve(endpoints.size());
  for (const auto& item : endpoints) read_endpoint(item, fields, *slice, problems);
  for (const auto& endpoint : slice->endpoints) {
    if (family && endpoint.address.is_v4() != (family == Family::v4)) {
      fields.error("addressType",
                   "the slice holds the address " + endpoint.address.to_string() + " of the other family",
                   "put the addresses of each family into a slice of their own");
    }
  }
  for (const auto& item : fields.maps("ports")) {
    Fields port(&item, problems);
    auto number = port.integer("port", 1, 65535);
    auto name = port.text("name").value_or("");
    auto transport = port.text("protocol").value_or("TCP");
    port.ignore({"appProtocol"});
    if (number && transport == "TCP") slice->ports.push_back({name, static_cast<uint16_t>(*number)});
  }
  return slice;
}

}  // namespace nodemesh::translate

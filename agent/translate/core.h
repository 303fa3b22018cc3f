// Kubernetes core kinds as far as the mesh needs them, read from manifests. The readers check one object
// alone; what depends on other objects is translate.cc's. Immutable values; any thread.
#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "base/addr.h"
#include "kube/store.h"
#include "model/service.h"

namespace nodemesh::translate {

struct NodeSpec : kube::Decoded {
  std::vector<Cidr> pod_cidrs;
  std::vector<Addr> addresses;  // its own; host names are left out
};

// networking.k8s.io/v1: ranges of cluster addresses.
struct ServiceCidrSpec : kube::Decoded {
  std::vector<Cidr> cidrs;
};

// node.k8s.io/v1: which runtime class runs pods how.
struct RuntimeClassSpec : kube::Decoded {
  std::string handler;
};

struct PodSpec : kube::Decoded {
  std::string service_account = "default";
  std::string node;
  std::string netns;
  std::string runtime_class;
  bool host_network = false;
  bool finished = false;
  std::vector<Addr> addresses;
  std::map<std::string, uint16_t> named_ports;
  std::vector<uint16_t> probe_ports;
};

struct ServiceSpec : kube::Decoded {
  struct Port {
    std::string name;
    uint16_t port = 0;
    model::Protocol protocol = model::Protocol::unspecified;
  };
  std::vector<Addr> vips;
  size_t cluster_vips = 0;  // so many, the first of them, are clusterIPs
  bool headless = false;
  std::string external_name;
  bool publish_not_ready = false;
  bool local_only = false;
  std::optional<std::chrono::seconds> client_ip_affinity;
  std::vector<Port> ports;
};

struct EndpointSliceSpec : kube::Decoded {
  struct Endpoint {
    Addr address;
    bool ready = true;
    bool serving = true;
    bool terminating = false;
    Text node;
    Text zone;
    std::string pod;  // targetRef of kind Pod
    uint32_t line = 0;
  };
  struct Port {
    std::string name;
    uint16_t port = 0;
  };
  std::string service;
  std::vector<Endpoint> endpoints;
  std::vector<Port> ports;
};

// Readers for kube::Kind; see there.
std::shared_ptr<const kube::Decoded> read_nothing_used(const kube::Object&, kube::Fields&, kube::Problems&);
std::shared_ptr<const kube::Decoded> read_node(const kube::Object&, kube::Fields&, kube::Problems&);
std::shared_ptr<const kube::Decoded> read_service_cidr(const kube::Object&, kube::Fields&, kube::Problems&);
std::shared_ptr<const kube::Decoded> read_runtime_class(const kube::Object&, kube::Fields&, kube::Problems&);
// Kind::fields of the two. A Pod has secrets in its environment, a Node lists every image.
std::span<const std::string_view> pod_fields();
std::span<const std::string_view> node_fields();
std::shared_ptr<const kube::Decoded> read_pod(const kube::Object&, kube::Fields&, kube::Problems&);
std::shared_ptr<const kube::Decoded> read_service(const kube::Object&, kube::Fields&, kube::Problems&);
std::shared_ptr<const kube::Decoded> read_endpoint_slice(const kube::Object&, kube::Fields&, kube::Problems&);

// appProtocol, else the port name up to the first '-'.
model::Protocol declared_protocol(std::string_view app_protocol, std::string_view port_name);

}  // namespace nodemesh::translate

// Istio's PeerAuthentication, DestinationRule and MeshConfig as far as this release serves them. What it does
// not serve is named in the object's status, never ignored in silence. Immutable values; any thread.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "kube/store.h"
#include "model/policy.h"
#include "model/service.h"
#include "model/snapshot.h"

namespace nodemesh::translate {

using Labels = std::map<std::string, std::string>;
// Whether every label of `selector` is in `labels`.
bool selects(const Labels& selector, const Labels& labels);
// Reads {matchLabels}; nullopt when `node` is null, an empty map for a selector that selects everything.
std::optional<Labels> read_selector(const kube::Node* node, kube::Problems& problems);

struct PeerAuthenticationSpec : kube::Decoded {
  std::optional<Labels> selector;
  std::optional<model::MtlsMode> mode;  // nullopt = UNSET, inherits
  std::map<uint16_t, std::optional<model::MtlsMode>> ports;
};

struct DestinationRuleSpec : kube::Decoded {
  std::string host;  // completed with the namespace; may start with '*'
  model::LbPolicy lb = model::LbPolicy::least_request;
  std::map<uint16_t, model::LbPolicy> port_lb;
  bool limited = false;  // by a field that is not served, so that it must not apply to everybody

  bool matches(std::string_view service_host) const;
};

// ConfigMap `istio`; other ConfigMaps have no content here.
struct MeshConfigSpec : kube::Decoded {
  std::optional<std::string> trust_domain;
  std::vector<std::string> trust_domain_aliases;
  std::optional<std::string> root_namespace;
  model::AccessLog access_log;
};

std::shared_ptr<const kube::Decoded> read_peer_authentication(const kube::Object&, kube::Fields&,
                                                              kube::Problems&);
std::shared_ptr<const kube::Decoded> read_destination_rule(const kube::Object&, kube::Fields&,
                                                           kube::Problems&);
std::shared_ptr<const kube::Decoded> read_config_map(const kube::Object&, kube::Fields&, kube::Problems&);

}  // namespace nodemesh::translate

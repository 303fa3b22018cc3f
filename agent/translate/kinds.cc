// The table of kinds; a new kind is one line here and a reader.
#include "translate/core.h"
#include "translate/istio.h"
#include "translate/istio_authz.h"
#include "translate/network_policy.h"
#include "translate/translate.h"
#include "translate/workload_slice.h"

namespace nodemesh::translate {

std::span<const kube::Kind> kinds() {
  static const kube::Kind kKinds[] = {
      {"", "Namespace", {"v1"}, false, read_nothing_used, true},
      {"", "Node", {"v1"}, false, read_node, false, node_fields()},
      {"", "ServiceAccount", {"v1"}, true, read_nothing_used, true},
      {"", "Pod", {"v1"}, true, read_pod, false, pod_fields()},
      {"", "Service", {"v1"}, true, read_service},
      {"", "ConfigMap", {"v1"}, true, read_config_map},
      {"discovery.k8s.io", "EndpointSlice", {"v1"}, true, read_endpoint_slice},
      {"networking.k8s.io", "ServiceCIDR", {"v1"}, false, read_service_cidr},
      {"networking.k8s.io", "NetworkPolicy", {"v1"}, true, read_network_policy},
      {"node.k8s.io", "RuntimeClass", {"v1"}, false, read_runtime_class},
      {"nodemesh.dev", "WorkloadSlice", {"v1alpha1"}, false, read_workload_slice},
      {"security.istio.io", "PeerAuthentication", {"v1", "v1beta1"}, true, read_peer_authentication},
      {"security.istio.io", "AuthorizationPolicy", {"v1", "v1beta1"}, true, read_authorization_policy},
      {"networking.istio.io", "DestinationRule", {"v1", "v1beta1", "v1alpha3"}, true, read_destination_rule},
  };
  return kKinds;
}

}  // namespace nodemesh::translate

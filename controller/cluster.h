// The controller on Kubernetes: wires the certificate authority, its authorisation, the leader election and
// the leader's duties to one API client, and serves until a signal. One thread of ours, and gRPC's. Where
// another authority signs it has no Secret, no bundle and no gRPC port, and is there for its duties alone.
#pragma once

#include <set>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/reason.h"
#include "controller/ca_state.h"
#include "controller/cluster_authorizer.h"
#include "io/reactor.h"
#include "kube/access.h"

namespace nodemesh::controller {

struct ClusterOptions {
  kube::Access access;
  bool authority = true;       // false: another authority signs, and only the leader's duties are done here
  bool interop_istio = false;  // Istio's annotation for ztunnel's Pods is read, and written on ours
  std::string ns;
  std::string identity;  // of this replica
  std::string trust_domain = "cluster.local";
  std::string cluster_domain = "cluster.local";
  std::string root_namespace = "istio-system";  // of the ConfigMap `istio`
  std::set<ServiceAccount> agents;
  std::string audience = "istio-ca";
  std::string service = "nodemesh-controller";
  std::vector<std::string> dns_names;  // besides the Service's
  std::string lease = "nodemesh-controller";
  std::string ca_secret = "nodemesh-ca", plugged_secret = "cacerts", trust_bundle = "nodemesh-root-cert";
  std::string ca_listen = "[::]:15012", admin_listen = "[::]:15014";
  seconds max_lifetime{24 * 3600}, root_lifetime{3650LL * 24 * 3600}, overlap{24 * 3600}, refresh{10};
};

// Returns after SIGTERM or SIGINT, with the lease given up; fails with one sentence for the operator.
Result<> run_cluster(io::Reactor& reactor, const Clock& clock, const ClusterOptions& options);

}  // namespace nodemesh::controller

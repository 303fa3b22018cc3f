// The controller's metrics page (Prometheus text format 0.0.4), rendered from its parts. Main thread only.
#pragma once

#include <string>

#include "base/clock.h"
#include "controller/cluster_duties.h"
#include "controller/issuer.h"
#include "controller/tls_front.h"

namespace nodemesh::controller {

struct ControllerFigures {
  std::string version;
  bool authority = true;  // false: the page has nothing of nodemesh_ca_*
  IssuerCounters issuer;
  TlsFront::Counters front;
  size_t connections = 0, pods = 0;
  bool pods_synced = false, leads = false, secrets_good = false, bundle_good = false;
  ClusterDuties::Figures duties;
  // The epoch where there is none.
  WallClock::time_point signer_not_after{}, server_not_after{}, next_signs_at{};
};
std::string render_metrics(const ControllerFigures& figures);

}  // namespace nodemesh::controller

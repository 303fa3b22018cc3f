// One HTTP exchange with a port on a pod's loopback, through the API server's pods/portforward: the way to an
// agent's admin port that needs neither a route to the pod nor pods/exec. Over a WebSocket with the
// subprotocol v4.channel.k8s.io, which the runtime's side has spoken since Kubernetes 1.8. RBAC: `get`
// (1.35 and later: `create` too) on pods/portforward. Blocking; any thread, several at once.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/clock.h"
#include "base/reason.h"
#include "ctl/client.h"
#include "kube/access.h"

namespace nodemesh::ctl {

struct PodPort {
  std::string ns, pod;
  uint16_t port = 0;
};

// `path` includes the query, encoded. The error's Reason is CONNECT_FAILED where the API server or the pod
// could not be reached, POLICY_DENY where the user may not, INTERNAL for an answer that is no HTTP.
Result<HttpResponse> http_through_api_server(const kube::Access& access, const PodPort& to,
                                             std::string_view method, std::string_view path,
                                             milliseconds deadline);

}  // namespace nodemesh::ctl

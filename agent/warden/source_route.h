// What a pod's namespace needs so that the proxy's connections to the application can carry the client's
// address: sockets marked NM_MARK, whose replies a rule sends to table NM_ROUTE_TABLE, where everything is
// local. Each part is necessary: without tcp_fwmark_accept connects time out, without fwmark_reflect a closed
// port does. The capture port range is reserved too, so that the pod's own connections do not pick it.
// Idempotent; the warden's thread only.
#pragma once

#include <string>
#include <string_view>

#include "base/reason.h"

namespace nodemesh::warden {

struct SourceRoute {
  bool ipv4 = false, ipv6 = false;  // of these families the client's address can be kept
  std::string missing;              // why not, for the log; empty when nothing is missing
};

// `proc` is where a writable procfs is mounted. `ipv6`: the pod has an address of that family.
// Errors only when the namespace cannot be entered.
Result<SourceRoute> install_source_route(int netns, const std::string& proc, bool ipv6);
// Takes all of it away again; what is already gone is no error.
Result<> remove_source_route(int netns, const std::string& proc);

// The pod's ip_local_reserved_ports `list` ("80,1000-2000") with or without the capture range. Pure.
std::string with_capture_range(std::string_view list);
std::string without_capture_range(std::string_view list);

}  // namespace nodemesh::warden

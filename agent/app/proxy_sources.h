// What the admin port says of a proxy: gathers rows from the control thread and, for connections, from every
// worker. Nothing here is on the data path; each function only posts to the thread that owns what is asked
// for.
#pragma once

#include <string>

#include "admin/sources.h"
#include "proxy/control.h"
#include "telemetry/registry.h"

namespace nodemesh::app {

// All references outlive the returned functions.
admin::Sources proxy_sources(proxy::Control& control, const std::string& node, const std::string& version,
                             const telemetry::Metrics& metrics, const telemetry::Denials& denials,
                             const Clock& clock);

}  // namespace nodemesh::app

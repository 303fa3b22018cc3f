// Times as Kubernetes writes them: RFC 3339 in UTC with microseconds (metav1.MicroTime). Any thread.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "base/clock.h"

namespace nodemesh::controller {

// "2026-01-31T23:59:59.000000Z".
std::string write_time(WallClock::time_point time);
// With or without a fraction; UTC ("Z") only. To the second.
std::optional<WallClock::time_point> read_time(std::string_view text);

}  // namespace nodemesh::controller

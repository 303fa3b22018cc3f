// The JSON rows made of telemetry's values, so that every place that shows connections shows the same. Call
// on the thread that owns the record.
#pragma once

#include <string>

#include <nlohmann/json_fwd.hpp>

#include "base/clock.h"

namespace nodemesh::telemetry {
class Record;
struct Denial;
}  // namespace nodemesh::telemetry

namespace nodemesh::admin {

// bytes_sent went to the client, bytes_received came from it.
nlohmann::json connection_row(const telemetry::Record& record, Monotonic::time_point now);
nlohmann::json denial_row(const telemetry::Denial& denial);
// "2026-01-31T12:00:00Z"
std::string rfc3339(WallClock::time_point time);

}  // namespace nodemesh::admin

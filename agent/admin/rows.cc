#include "admin/rows.h"

#include <ctime>

#include <nlohmann/json.hpp>

#include "telemetry/denials.h"
#include "telemetry/record.h"

namespace nodemesh::admin {
namespace {

nlohmann::json side(const telemetry::WorkloadRef& workload,
                    const std::shared_ptr<const std::string>& identity, const SockAddr& addr) {
  nlohmann::json row = {{"address", addr.to_string()}, {"identity", nullptr}};
  if (workload) {
    row["workload"] = workload->workload;
    row["namespace"] = workload->ns;
  }
  if (identity) row["identity"] = *identity;
  return row;
}

}  // namespace

std::string rfc3339(WallClock::time_point time) {
  std::time_t secs = WallClock::to_time_t(time);
  std::tm parts{};
  gmtime_r(&secs, &parts);
  char text[32];
  return {text, std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &parts)};
}

nlohmann::json connection_row(const telemetry::Record& record, Monotonic::time_point now) {
  nlohmann::json row = {
      {"id", record.id()},
      {"direction", telemetry::name(record.direction())},
      {"source", side(record.source, record.source_identity, record.src)},
      {"destination", side(record.destination, record.destination_identity, record.dst)},
      {"tls", nullptr},
      {"path", telemetry::name(record.path)},
      {"established", record.is_established()},
      {"bytes_sent", record.from_server()},
      {"bytes_received", record.from_client()},
      {"opened_at", rfc3339(record.opened_at())},
      {"age_ms", record.age(now).count()},
  };
  row["destination"]["port"] = record.dst.port;
  if (record.service) row["destination"]["service"] = record.service->host;
  if (record.hbone.port) row["hbone_address"] = record.hbone.to_string();
  if (record.tls_version)
    row["tls"] = {{"version", record.tls_version}, {"cipher", record.tls_cipher ? record.tls_cipher : ""}};
  return row;
}

nlohmann::json denial_row(const telemetry::Denial& denial) {
  return {{"time", rfc3339(denial.time)},
          {"source", denial.source},
          {"destination", denial.destination},
          {"reason", reason_name(denial.reason)},
          {"text", reason_text(denial.reason)},
          {"policy", denial.policy.empty() ? nlohmann::json() : nlohmann::json(denial.policy)},
          {"suppressed", denial.suppressed}};
}

}  // namespace nodemesh::admin

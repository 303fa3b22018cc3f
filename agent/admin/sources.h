// Where the admin server's answers come from: functions that the process wires to its parts. All are called
// on the admin thread; an asynchronous one may answer from any thread, once, and soon (the server gives up
// after 5 s). They return rows; the server wraps them as {"schema":1,"node":…,"kind":…,"items":[…]}.
//
// Rows. Times are RFC 3339 UTC, durations end in _s or _ms, absent values are left out or null:
//   workloads    {name, namespace, addresses[], node, identity, protocol: "HBONE"|"TCP", local, enrolled,
//   status, origin} services     {name, namespace, host, addresses[], ports[{name, port, target_port,
//   protocol}], endpoints, ready} policies     {kind, name, namespace, scope: "mesh"|"namespace"|"workload",
//   action, dry_run, status, origin} certs        {identity, state, serial, not_before, not_after,
//   expires_in_s, trust_domain} listeners    {workload, namespace, kind: "outbound"|"inbound"|"hbone",
//   address, state} connections  {id, direction, source{workload, namespace, identity, address},
//   destination{the same, service, port},
//                 tls{version, cipher}|null, path, bytes_sent, bytes_received, opened_at, age_ms}; see rows.h
//   denials      {time, source, destination, reason, text, policy, suppressed}; beside the connections, see
//   rows.h status       an object: {ready, reasons[], generation, config_age_s, rejected[{kind, namespace,
//   name, origin,
//                 field, message}], warden{connected}, workers, uptime_s, pid, config{source:
//                 "folder"|"api"|"snapshot", contact_age_s, troubles[], snapshot_problem, slices_problem}}
//   config_dump  an object; holds no key, token or other secret
#pragma once

#include <functional>
#include <string>
#include <vector>

#include <nlohmann/json_fwd.hpp>

namespace nodemesh::telemetry {
class Denials;
}

namespace nodemesh::admin {

using Reply = std::move_only_function<void(nlohmann::json&&)>;
using Source = std::function<void(Reply)>;

struct Sources {
  std::string node;
  std::string version;
  Source workloads, services, policies, certs, listeners, connections, status, config_dump;  // unset: 404
  const telemetry::Denials* denials = nullptr;          // outlives the server
  std::function<std::string()> metrics;                 // the Prometheus exposition
  std::function<std::vector<std::string>()> not_ready;  // why not; empty: ready. Unset: ready
};

}  // namespace nodemesh::admin

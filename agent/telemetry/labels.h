// The label values of Istio's TCP metrics: plain strings about a workload, a service and a connection, made
// by whoever knows the objects and shared with every connection that needs them. Immutable once shared; any
// thread. An empty string, like a missing object, is written as "unknown" (canonical_revision as "latest").
#pragma once

#include <cstdint>
#include <memory>
#include <string>

namespace nodemesh::telemetry {

struct WorkloadLabels {
  std::string workload, ns, principal, app, version, cluster, canonical_service, canonical_revision, region,
      zone;
  uint64_t hash = 0;  // set by share()

  bool operator==(const WorkloadLabels& other) const;
};

struct ServiceLabels {
  std::string host;   // destination_service, e.g. "web.shop.svc.cluster.local"
  std::string name;   // destination_service_name, e.g. "web"
  std::string ns;     // destination_service_namespace
  uint64_t hash = 0;  // set by share()

  bool operator==(const ServiceLabels& other) const;
};

using WorkloadRef = std::shared_ptr<const WorkloadLabels>;
using ServiceRef = std::shared_ptr<const ServiceLabels>;

// Freezes the labels and stores their hash, so that finding a series costs no string hashing per connection.
// Make them once per workload or service and configuration generation, not per connection.
WorkloadRef share(WorkloadLabels labels);
ServiceRef share(ServiceLabels labels);

enum class Reporter : uint8_t { source, destination };
enum class Security : uint8_t { unknown, none, mutual_tls };

// The key of one series. request_protocol is always "tcp" here.
struct TcpLabels {
  WorkloadRef source, destination;   // null: unknown
  ServiceRef service;                // null: unknown
  const char* response_flags = "-";  // a literal, see response_flags() in record.h
  Reporter reporter = Reporter::source;
  Security security = Security::unknown;
  // False when the side's identity was not proven (plaintext peer): its principal is written as "unknown".
  bool source_verified = true, destination_verified = true;

  bool operator==(const TcpLabels& other) const;
};

struct TcpLabelsHash {
  size_t operator()(const TcpLabels& labels) const;
};

}  // namespace nodemesh::telemetry

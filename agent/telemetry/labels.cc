#include "telemetry/labels.h"

#include <bit>
#include <cstring>
#include <functional>
#include <initializer_list>
#include <string_view>
#include <tuple>

namespace nodemesh::telemetry {
namespace {

uint64_t mix(uint64_t seed, uint64_t value) {
  seed ^= value + 0x9E3779B97F4A7C15ull + (seed << 6) + (seed >> 2);
  seed *= 0xBF58476D1CE4E5B9ull;
  return seed ^ (seed >> 31);
}

uint64_t hash_all(std::initializer_list<std::string_view> texts) {
  uint64_t hash = 1;
  for (auto text : texts) hash = mix(hash, std::hash<std::string_view>{}(text));
  return hash | 1;  // 0 means "not computed"
}

uint64_t compute(const WorkloadLabels& l) {
  return hash_all({l.workload, l.ns, l.principal, l.app, l.version, l.cluster, l.canonical_service,
                   l.canonical_revision, l.region, l.zone});
}
uint64_t compute(const ServiceLabels& l) {
  return hash_all({l.host, l.name, l.ns});
}

template <class T>
uint64_t hash_of(const std::shared_ptr<const T>& labels) {
  if (!labels) return 0;
  return labels->hash ? labels->hash : compute(*labels);
}

// Generations of configuration make equal labels anew, so identity is only the fast answer.
template <class T>
bool same(const std::shared_ptr<const T>& a, const std::shared_ptr<const T>& b) {
  if (a == b) return true;
  return a && b && *a == *b;
}

}  // namespace

bool WorkloadLabels::operator==(const WorkloadLabels& o) const {
  return std::tie(workload, ns, principal, app, version, cluster, canonical_service, canonical_revision,
                  region, zone) == std::tie(o.workload, o.ns, o.principal, o.app, o.version, o.cluster,
                                            o.canonical_service, o.canonical_revision, o.region, o.zone);
}

bool ServiceLabels::operator==(const ServiceLabels& o) const {
  return host == o.host && name == o.name && ns == o.ns;
}

WorkloadRef share(WorkloadLabels labels) {
  labels.hash = compute(labels);
  return std::make_shared<const WorkloadLabels>(std::move(labels));
}

ServiceRef share(ServiceLabels labels) {
  labels.hash = compute(labels);
  return std::make_shared<const ServiceLabels>(std::move(labels));
}

bool TcpLabels::operator==(const TcpLabels& o) const {
  return reporter == o.reporter && security == o.security && source_verified == o.source_verified &&
         destination_verified == o.destination_verified &&
         (response_flags == o.response_flags || std::strcmp(response_flags, o.response_flags) == 0) &&
         same(source, o.source) && same(destination, o.destination) && same(service, o.service);
}

size_t TcpLabelsHash::operator()(const TcpLabels& l) const {
  uint64_t bits = static_cast<uint64_t>(l.reporter) | static_cast<uint64_t>(l.security) << 1 |
                  static_cast<uint64_t>(l.source_verified) << 3 |
                  static_cast<uint64_t>(l.destination_verified) << 4;
  uint64_t hash = mix(bits, std::hash<std::string_view>{}(l.response_flags));
  hash = mix(hash, hash_of(l.source));
  hash = mix(hash, hash_of(l.destination));
  return mix(hash, hash_of(l.service));
}

}  // namespace nodemesh::telemetry

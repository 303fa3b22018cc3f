#include "proxy/labels.h"

namespace nodemesh::proxy {
namespace {

constexpr std::string_view kCluster = "Kubernetes";
// Peers bring their identities themselves, so the memory for them is bounded.
constexpr size_t kMaxStrangers = 1024;

telemetry::WorkloadLabels labels_of(const model::Workload& workload) {
  return {.workload = workload.workload_name,
          .ns = workload.ns,
          .principal = workload.identity,
          .app = workload.app,
          .version = workload.version,
          .cluster = std::string(kCluster),
          .canonical_service = workload.canonical_name,
          .canonical_revision = workload.canonical_revision,
          .region = workload.region,
          .zone = workload.zone};
}

}  // namespace

telemetry::WorkloadRef LabelCache::workload(const model::Shared<model::Workload>& of) {
  if (of == nullptr) return nullptr;
  auto& [held, labels] = workloads_[of.get()];
  if (labels == nullptr) {
    held = of;
    labels = telemetry::share(labels_of(*of));
  }
  return labels;
}

telemetry::ServiceRef LabelCache::service(const model::Shared<model::Service>& of) {
  if (of == nullptr) return nullptr;
  auto& [held, labels] = services_[of.get()];
  if (labels == nullptr) {
    held = of;
    labels = telemetry::share({.host = of->host, .name = of->name, .ns = of->ns});
  }
  return labels;
}

telemetry::WorkloadRef LabelCache::stranger(const model::PeerIdentity& identity) {
  auto found = strangers_.find(std::string(identity.uri));
  if (found != strangers_.end()) return found->second;
  if (strangers_.size() >= kMaxStrangers) return nullptr;
  auto labels = telemetry::share({.ns = std::string(identity.ns), .principal = std::string(identity.uri)});
  strangers_.emplace(identity.uri, labels);
  return labels;
}

void LabelCache::clear() {
  workloads_.clear();
  services_.clear();
  strangers_.clear();
}

}  // namespace nodemesh::proxy

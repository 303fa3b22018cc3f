// Telemetry labels of the snapshot's objects, made once per object and generation. Worker thread only.
#pragma once

#include <string>
#include <unordered_map>
#include <utility>

#include "model/authorize.h"
#include "model/service.h"
#include "model/workload.h"
#include "telemetry/labels.h"

namespace nodemesh::proxy {

class LabelCache {
 public:
  // `of` may be null: unknown.
  telemetry::WorkloadRef workload(const model::Shared<model::Workload>& of);
  telemetry::ServiceRef service(const model::Shared<model::Service>& of);
  // What is known of a peer that no Pod of the snapshot explains: its proven identity.
  telemetry::WorkloadRef stranger(const model::PeerIdentity& identity);
  void clear();

 private:
  // The object is held, so that its address cannot come to mean another.
  template <class Object, class Labels>
  using ByObject = std::unordered_map<const Object*, std::pair<model::Shared<Object>, Labels>>;
  ByObject<model::Workload, telemetry::WorkloadRef> workloads_;
  ByObject<model::Service, telemetry::ServiceRef> services_;
  std::unordered_map<std::string, telemetry::WorkloadRef> strangers_;
};

}  // namespace nodemesh::proxy

// The second step: what is at the two ends of a connection. Pure functions of the snapshot, so that tests and
// `meshctl why` call what serves traffic.
#pragma once

#include "base/addr.h"
#include "base/reason.h"
#include "model/snapshot.h"

namespace nodemesh::proxy {

// Where a captured client wanted to go. The pointers live as long as the snapshot.
struct Destination {
  SockAddr dialled;
  model::Shared<model::Service>
      service;  // dialled by its VIP, or one that `dialled` is an endpoint of; or null
  const model::ServicePort* port = nullptr;  // of `service`
  model::Shared<model::Workload> workload;   // dialled by its own address; null: a VIP or a stranger
};

// Errors: NO_ROUTE when the address is a Service's but the port is not.
Result<Destination> identify_destination(const model::Snapshot& snapshot, const SockAddr& dialled);

// The Service that a connection to `endpoint` most likely meant, for labels only: one that has it as an
// endpoint.
model::Shared<model::Service> service_of_endpoint(const model::Snapshot& snapshot, const SockAddr& endpoint);

}  // namespace nodemesh::proxy

#include "proxy/identify.h"

namespace nodemesh::proxy {

Result<Destination> identify_destination(const model::Snapshot& snapshot, const SockAddr& dialled) {
  Destination destination{.dialled = dialled};
  if (const auto& service = snapshot.find_service(dialled.ip); service != nullptr) {
    destination.service = service;
    destination.port = service->find_port(dialled.port);
    if (destination.port == nullptr) {
      return fail(Reason::NO_ROUTE, "Service " + service->ns + "/" + service->name + " has no port " +
                                        std::to_string(dialled.port));
    }
    return destination;
  }
  destination.workload = snapshot.find_workload(dialled.ip);
  if (destination.workload != nullptr) destination.service = service_of_endpoint(snapshot, dialled);
  return destination;
}

model::Shared<model::Service> service_of_endpoint(const model::Snapshot& snapshot, const SockAddr& endpoint) {
  return snapshot.find_service_of_endpoint(endpoint);
}

}  // namespace nodemesh::proxy

#include "model/snapshot.h"

#include <algorithm>

namespace nodemesh::model {
namespace {

template <class Map, class Key>
const auto& find_or_null(const Map& map, const Key& key) {
  static const typename Map::mapped_type kNull;
  auto found = map.find(key);
  return found == map.end() ? kNull : found->second;
}

template <class T, class Key>
const Shared<T>& at_place(const std::vector<Shared<T>>& all, const std::unordered_map<Key, uint32_t>& places,
                          const Key& key) {
  static const Shared<T> kNull;
  auto found = places.find(key);
  return found == places.end() ? kNull : all[found->second];
}

}  // namespace

bool SnapshotContent::same_content(const SnapshotContent& other) const {
  return node == other.node && mesh == other.mesh && workloads == other.workloads &&
         services == other.services;
}

Snapshot::Snapshot(SnapshotContent content) : content_(std::move(content)) {
  add_ranges();
  workload_by_address_.reserve(content_.workloads.size());
  for (uint32_t i = 0; i < content_.workloads.size(); ++i) {
    const auto& workload = content_.workloads[i];
    if (workload->origin.kind == "Pod") {
      ++pods_;
      workload_by_uid_.emplace(workload->uid, workload);
      workload_by_name_[workload->ns].emplace(workload->name, workload);
    }
    if (workload->host_network) continue;
    for (const auto& address : workload->addresses) workload_by_address_.emplace(address, i);
  }
  for (uint32_t i = 0; i < content_.services.size(); ++i) {
    const auto& service = content_.services[i];
    service_by_name_[service->ns].emplace(service->name, service);
    for (const auto& vip : service->vips) service_by_vip_.emplace(vip, i);
    for (const auto& port : service->ports) {
      for (const auto& endpoint : port.endpoints) {
        // Whoever may write EndpointSlices can name pods of other namespaces; no selector does.
        const auto& pod = endpoint.workload;
        if (pod && !pod->ns.empty() && pod->ns != service->ns) continue;
        auto [at, added] = service_by_endpoint_.emplace(endpoint.target(), i);
        bool headless = content_.services[at->second]->vips.empty();
        if (!added && headless && !service->vips.empty()) at->second = i;
      }
    }
  }
}

const Shared<Workload>& Snapshot::find_workload(const Addr& address) const {
  return at_place(content_.workloads, workload_by_address_, address);
}

const Shared<Workload>& Snapshot::find_workload_by_uid(std::string_view uid) const {
  return find_or_null(workload_by_uid_, uid);
}

const Shared<Workload>& Snapshot::find_workload(std::string_view ns, std::string_view name) const {
  return find_or_null(find_or_null(workload_by_name_, ns), name);
}

const Shared<Service>& Snapshot::find_service(const Addr& vip) const {
  return at_place(content_.services, service_by_vip_, vip);
}

const Shared<Service>& Snapshot::find_service(std::string_view ns, std::string_view name) const {
  return find_or_null(find_or_null(service_by_name_, ns), name);
}

ServiceAddress Snapshot::find_service_port(const SockAddr& vip) const {
  const auto& service = find_service(vip.ip);
  if (!service) return {};
  return {service.get(), service->find_port(vip.port)};
}

const Shared<Service>& Snapshot::find_service_of_endpoint(const SockAddr& endpoint) const {
  return at_place(content_.services, service_by_endpoint_, endpoint);
}

void Snapshot::add_ranges() {
  const auto& peers = content_.mesh.peers;
  for (const auto& range : content_.mesh.cluster_cidrs) ranges_.add(range).first = Mesh::unknown;
  for (const auto& range : peers.plain_ranges) ranges_.add(range).first = Mesh::none;
  for (const auto& range : peers.services) ranges_.add(range).first = Mesh::unknown;
}

Mesh Snapshot::mesh_of_stranger(const Addr& address) const {
  const auto& peers = content_.mesh.peers;
  if (peers.everyone_known) return Mesh::none;
  if (std::ranges::binary_search(peers.node_addresses, address)) return Mesh::none;
  const auto* range = ranges_.find(address);
  return range ? *range : Mesh::none;
}

}  // namespace nodemesh::model

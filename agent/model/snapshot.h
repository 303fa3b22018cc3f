// One immutable generation of everything the data path must know. Made by translate/ on the control thread,
// read by every worker through shared_ptr<const Snapshot>; parts that did not change are the same objects as
// in the generation before. Lookups are hash lookups without allocation.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/addr.h"
#include "base/cidr_map.h"
#include "model/peers.h"
#include "model/service.h"
#include "model/workload.h"

namespace nodemesh::model {

// MeshConfig's access log settings.
struct AccessLog {
  std::string file;   // "/dev/stdout"; empty = off
  bool json = false;  // accessLogEncoding: JSON

  bool operator==(const AccessLog&) const = default;
};

struct MeshSettings {
  std::string trust_domain = "cluster.local";
  std::vector<std::string> trust_domain_aliases;
  std::string root_namespace = "istio-system";
  AccessLog access_log;
  std::vector<Cidr> cluster_cidrs;  // pods and services; an address in none of them is outside the cluster
  PeerRules peers;

  bool operator==(const MeshSettings&) const = default;
};

struct SnapshotContent {
  uint64_t generation = 0;
  std::string node;  // the node this snapshot is for
  MeshSettings mesh;
  std::vector<Shared<Workload>> workloads;  // those with a Pod here, by namespace and name; then the others
  std::vector<Shared<Service>> services;    // sorted by namespace and name

  // Everything but the generation.
  bool same_content(const SnapshotContent& other) const;
};

struct ServiceAddress {
  const Service* service = nullptr;
  const ServicePort* port = nullptr;  // null: the Service has the address but not that port
};

class Snapshot {
 public:
  // Where two entries claim one key the first wins; translate/ has already refused and reported such objects.
  explicit Snapshot(SnapshotContent content);
  Snapshot(const Snapshot&) = delete;
  Snapshot& operator=(const Snapshot&) = delete;

  uint64_t generation() const { return content_.generation; }
  const std::string& node() const { return content_.node; }
  const MeshSettings& mesh() const { return content_.mesh; }
  const SnapshotContent& content() const { return content_; }
  const std::vector<Shared<Workload>>& workloads() const { return content_.workloads; }
  // The first of them: those made of a Pod, in a cluster this node's.
  std::span<const Shared<Workload>> pods() const { return std::span(content_.workloads).first(pods_); }
  const std::vector<Shared<Service>>& services() const { return content_.services; }

  // Null when absent. The references live as long as the snapshot; copy the shared_ptr to keep a workload
  // longer.
  const Shared<Workload>& find_workload(const Addr& address) const;
  // By uid and by name only those that were made of a Pod: others are what another node says, perhaps to
  // deceive.
  const Shared<Workload>& find_workload_by_uid(std::string_view uid) const;
  const Shared<Workload>& find_workload(std::string_view ns, std::string_view name) const;
  const Shared<Service>& find_service(const Addr& vip) const;
  const Shared<Service>& find_service(std::string_view ns, std::string_view name) const;
  ServiceAddress find_service_port(const SockAddr& vip) const;
  // A Service that has `endpoint` among its endpoints, of the pod's namespace, one with an own address before
  // a headless one; for labels of connections that dialled the endpoint itself. Null when there is none.
  const Shared<Service>& find_service_of_endpoint(const SockAddr& endpoint) const;
  bool in_cluster(const Addr& address) const { return ranges_.find(address) != nullptr; }
  // Of an address without a workload: known to be outside of the mesh (none), or not known.
  Mesh mesh_of_stranger(const Addr& address) const;

 private:
  struct StringHash : std::hash<std::string_view> {
    using is_transparent = void;
  };
  template <class T>
  using ByString = std::unordered_map<std::string_view, T, StringHash, std::equal_to<>>;
  template <class T>
  using ByName = ByString<ByString<T>>;  // namespace, then name; the keys are views into the values

  void add_ranges();

  SnapshotContent content_;
  size_t pods_ = 0;
  // The values are places in content_.workloads and content_.services.
  std::unordered_map<Addr, uint32_t> workload_by_address_;
  std::unordered_map<Addr, uint32_t> service_by_vip_;
  std::unordered_map<SockAddr, uint32_t> service_by_endpoint_;
  ByString<Shared<Workload>> workload_by_uid_;
  ByName<Shared<Workload>> workload_by_name_;
  ByName<Shared<Service>> service_by_name_;
  CidrMap<Mesh> ranges_;  // of cluster_cidrs and the peer rules
};

}  // namespace nodemesh::model

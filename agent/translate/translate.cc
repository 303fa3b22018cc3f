#include "translate/translate.h"

#include <algorithm>
#include <set>
#include <unordered_map>

#include "translate/evidence.h"
#include "translate/network_policy.h"
#include "translate/policies.h"
#include "translate/remote.h"
#include "translate/services.h"
#include "translate/slice_plan.h"
#include "translate/status.h"
#include "translate/workload_facts.h"
#include "translate/workloads.h"

namespace nodemesh::translate {
namespace {

using model::Shared;

// The previous object where it is equal, so that its pointer stays.
template <class T>
Shared<T> reuse(const Shared<T>& before, T value) {
  if (before && *before == value) return before;
  return std::make_shared<const T>(std::move(value));
}

model::MeshSettings mesh_settings(const kube::Store& store, const TranslateOptions& options) {
  model::MeshSettings mesh;
  mesh.trust_domain = options.trust_domain;
  mesh.root_namespace = options.mesh_config_namespace;
  mesh.cluster_cidrs = options.cluster_cidrs;
  for (const auto& node : store.objects("Node")) {
    const auto& cidrs = static_cast<const NodeSpec&>(*node.decoded).pod_cidrs;
    mesh.cluster_cidrs.insert(mesh.cluster_cidrs.end(), cidrs.begin(), cidrs.end());
  }
  const auto* entry = store.find("ConfigMap", options.mesh_config_namespace, "istio");
  if (!entry) return mesh;
  const auto& config = static_cast<const MeshConfigSpec&>(*entry->decoded);
  mesh.trust_domain = config.trust_domain.value_or(mesh.trust_domain);
  mesh.trust_domain_aliases = config.trust_domain_aliases;
  mesh.root_namespace = config.root_namespace.value_or(mesh.root_namespace);
  mesh.access_log = config.access_log;
  return mesh;
}

// The objects of a kind, oldest first: the order in which they may claim addresses.
std::vector<const kube::Entry*> by_age(const kube::Store& store, std::string_view kind) {
  std::vector<const kube::Entry*> entries;
  for (const auto& entry : store.objects(kind)) entries.push_back(&entry);
  std::ranges::sort(entries, [](auto* a, auto* b) { return older(*a->object, *b->object); });
  return entries;
}

const PodSpec& pod_of(const kube::Entry& entry) {
  return static_cast<const PodSpec&>(*entry.decoded);
}

template <class T>
void sort_by_name(std::vector<Shared<T>>& items) {
  std::ranges::sort(items, [](const auto& a, const auto& b) {
    return std::tie(a->ns, a->name) < std::tie(b->ns, b->name);
  });
}

}  // namespace

struct TranslateMemory::Parts {
  Evidence evidence;
  RemoteMemory remote;
  ServiceMemory services;
};

TranslateMemory::TranslateMemory() : parts_(std::make_unique<Parts>()) {}
TranslateMemory::~TranslateMemory() = default;

class Translator {
 public:
  Translator(const kube::Store& store, const std::shared_ptr<const model::Snapshot>& previous,
             const TranslateOptions& options, TranslateMemory& memory)
      : store_(store),
        previous_(previous),
        options_(options),
        memory_(*memory.parts_),
        claims_(reports_),
        slices_(store, options.cluster ? options.node : "", reports_) {
    content_.node = options.node;
    content_.mesh = mesh_settings(store, options);
  }

  Translation run() {
    add_workloads();
    sort_by_name(content_.workloads);
    if (options_.cluster) add_remote_workloads();
    add_services();
    sort_by_name(content_.services);
    return {publish(), reports_.merge(store_.statuses())};
  }

 private:
  // Of Pods of one age, those that hold all they claim come first: a newcomer takes nothing from them.
  std::vector<const kube::Entry*> pods_in_order() const {
    auto entries = by_age(store_, "Pod");
    // Of another node's pods its slices speak.
    if (options_.cluster)
      std::erase_if(entries, [&](auto* entry) { return pod_of(*entry).node != options_.node; });
    if (!previous_) return entries;
    std::set<const kube::Entry*> holders;
    for (const auto* entry : entries) {
      if (holds_its_claims(*entry)) holders.insert(entry);
    }
    std::ranges::sort(entries, [&](auto* a, auto* b) {
      bool one_age = a->object->creation_timestamp == b->object->creation_timestamp;
      if (one_age && holders.contains(a) != holders.contains(b)) return holders.contains(a);
      return older(*a->object, *b->object);
    });
    return entries;
  }

  bool holds_its_claims(const kube::Entry& entry) const {
    const auto& pod = *entry.object;
    const auto& spec = pod_of(entry);
    auto before = previous_->find_workload(pod.key.ns, pod.key.name);
    return before && before->uid == (pod.uid.empty() ? pod.key.ns + "/" + pod.key.name : pod.uid) &&
           before->netns == spec.netns && std::ranges::equal(before->addresses, spec.addresses);
  }

  // Pods claim their addresses before Services do: a pod's address is a fact, a VIP a wish.
  void add_workloads() {
    Policies policies(store_, content_.mesh, previous_.get(), reports_);
    NetworkPolicies network(store_);
    for (const auto* entry : pods_in_order()) {
      auto made = make_workload(store_, *entry, content_.mesh.trust_domain, claims_, reports_);
      if (!made) continue;
      // There, anybody who may make a Pod may write an annotation; the warden finds the namespace by itself.
      if (options_.cluster) made->netns = {};
      if (options_.cluster && !made->host_network) warn_of_labels_left_out(*entry->object);
      Shared<model::Workload> before;
      if (previous_) before = previous_->find_workload(made->ns, made->name);
      made->policy = policies.of(made->ns, made->labels, slices_.ports_of(made->ns + "/" + made->name));
      if (before && before->policy == made->policy) made->policy = before->policy;
      if (!made->host_network) made->network = network.of(made->ns, made->labels);
      add(reuse(before, std::move(*made)));
    }
  }

  // By which a NetworkPolicy or a log of another node would look for it in vain.
  void warn_of_labels_left_out(const kube::Object& pod) {
    auto first = first_label_left_out(pod.labels);
    if (first == pod.labels.end()) return;
    reports_.add(pod, kube::Severity::warning, "metadata.labels",
                 "the Pod has more than 16 KiB of labels; other nodes do not hear of \"" + first->first +
                     "\" and those behind it",
                 "move what nobody selects by to annotations");
  }

  void add(Shared<model::Workload> workload) {
    by_name_.emplace(workload->ns + "/" + workload->name, workload);
    add_addresses(workload);
    content_.workloads.push_back(std::move(workload));
  }

  void add_addresses(const Shared<model::Workload>& workload) {
    if (workload->host_network) return;
    for (const auto& address : workload->addresses) by_address_.emplace(address, workload);
  }

  // Their policies are their own nodes' to enforce.
  void add_remote_workloads() {
    auto facts = facts_from_slices(store_, options_.node);
    memory_.evidence.update(store_, pods_follow_ranges());
    const auto own = by_address_;
    auto is_ours = [&](const Addr& address) { return own.contains(address); };
    auto made = remote_workloads(store_, facts, memory_.evidence, {content_.mesh.trust_domain, is_ours},
                                 memory_.remote, reports_);
    content_.workloads.reserve(content_.workloads.size() + made.size());
    by_address_.reserve(by_address_.size() + made.size());
    for (auto& workload : made) {
      add_addresses(workload);
      content_.workloads.push_back(std::move(workload));
    }
    content_.mesh.peers = peer_rules(store_, facts, memory_.evidence, options_.unknown_peer);
  }

  // Some CNIs give addresses from ranges of their own and leave Node.spec.podCIDRs without meaning. Our own
  // pods show it.
  bool pods_follow_ranges() const {
    const auto* node = store_.find("Node", "", options_.node);
    if (!node) return true;
    const auto& ranges = static_cast<const NodeSpec&>(*node->decoded).pod_cidrs;
    auto inside = [&](const Addr& address) {
      bool of_family = std::ranges::any_of(
          ranges, [&](const Cidr& range) { return range.network.is_v4() == address.is_v4(); });
      return !of_family ||
             std::ranges::any_of(ranges, [&](const Cidr& range) { return range.contains(address); });
    };
    return std::ranges::all_of(by_address_, [&](const auto& entry) { return inside(entry.first); });
  }

  // A Service's address is a wish: that of a pod elsewhere is not to be had. (Claims know of our own pods.)
  void keep_from(const kube::Entry& service) {
    for (const auto& vip : static_cast<const ServiceSpec&>(*service.decoded).vips) {
      auto found = by_address_.find(vip);
      if (found == by_address_.end() || found->second->origin.kind != "WorkloadSlice") continue;
      const auto* slice = store_.find("WorkloadSlice", "", found->second->origin.name);
      if (slice) claims_.take(vip, *slice->object, found->second->origin.section.str().c_str());
    }
  }

  // A cluster address is the API server's to give, to one Service. External ones whoever may write a Service
  // can wish for: those that a Service of another namespace is given tomorrow, too.
  void claim_cluster_addresses(const kube::Entry& service) {
    if (options_.cluster) keep_from(service);
    const auto& spec = static_cast<const ServiceSpec&>(*service.decoded);
    for (const auto& vip : std::span(spec.vips).first(spec.cluster_vips))
      claims_.reserve(vip, *service.object, "spec.clusterIP");
  }

  void add_services() {
    BalancerRules rules(store_, content_.mesh.root_namespace, options_.cluster_domain, reports_);
    auto find_workload = [this](const std::string& ns, const std::string& pod, const Addr& address) {
      auto named = pod.empty() ? by_name_.end() : by_name_.find(ns + "/" + pod);
      // The address decides who is reached; a name that does not fit it is stale.
      if (named != by_name_.end() &&
          std::ranges::find(named->second->addresses, address) != named->second->addresses.end()) {
        return named->second;
      }
      auto found = by_address_.find(address);
      return found == by_address_.end() ? Shared<model::Workload>{} : found->second;
    };
    auto& memory = memory_.services;
    ++memory.round;
    auto entries = by_age(store_, "Service");
    for (const auto* entry : entries) claim_cluster_addresses(*entry);
    for (const auto* entry : entries) {
      auto made = make_service(*entry, slices_, rules, options_, find_workload, claims_, memory);
      Shared<model::Service> before;
      if (previous_ && memory.round == 1) before = previous_->find_service(made->ns, made->name);
      content_.services.push_back(before == made ? before : made);
    }
    std::erase_if(memory.by_name, [&](const auto& entry) { return entry.second.round != memory.round; });
  }

  std::shared_ptr<const model::Snapshot> publish() {
    if (previous_ && previous_->content().same_content(content_)) return previous_;
    content_.generation = previous_ ? previous_->generation() + 1 : 1;
    return std::make_shared<const model::Snapshot>(std::move(content_));
  }

  const kube::Store& store_;
  const std::shared_ptr<const model::Snapshot>& previous_;
  const TranslateOptions& options_;
  TranslateMemory::Parts& memory_;
  Reports reports_;
  Claims claims_;
  Slices slices_;
  model::SnapshotContent content_;
  std::unordered_map<std::string, Shared<model::Workload>> by_name_;  // of the Pods we have
  std::unordered_map<Addr, Shared<model::Workload>> by_address_;
};

Translation translate(const kube::Store& store, const std::shared_ptr<const model::Snapshot>& previous,
                      const TranslateOptions& options, TranslateMemory& memory) {
  return Translator(store, previous, options, memory).run();
}

std::vector<kube::Status> policy_statuses(const kube::Store& store, const TranslateOptions& options) {
  Reports reports;
  auto mesh = mesh_settings(store, options);
  Policies policies(store, mesh, nullptr, reports);
  BalancerRules rules(store, mesh.root_namespace, options.cluster_domain, reports);
  auto statuses = reports.merge(store.statuses());
  std::erase_if(statuses, [](const kube::Status& status) {
    return status.kind != "PeerAuthentication" && status.kind != "AuthorizationPolicy" &&
           status.kind != "DestinationRule";
  });
  return statuses;
}

Translation translate(const kube::Store& store, const std::shared_ptr<const model::Snapshot>& previous,
                      const TranslateOptions& options) {
  TranslateMemory memory;
  return translate(store, previous, options, memory);
}

}  // namespace nodemesh::translate

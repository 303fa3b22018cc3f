#include "translate/translate.h"

#include <algorithm>
#include <set>
#include <unordered_map>

#include "translate/policies.h"
#include "translate/services.h"
#include "translate/status.h"
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

template <class T>
void sort_by_name(std::vector<Shared<T>>& items) {
  std::ranges::sort(items, [](const auto& a, const auto& b) {
    return std::tie(a->ns, a->name) < std::tie(b->ns, b->name);
  });
}

class Translator {
 public:
  Translator(const kube::Store& store, const std::shared_ptr<const model::Snapshot>& previous,
             const TranslateOptions& options)
      : store_(store), previous_(previous), options_(options), claims_(reports_), slices_(store, reports_) {
    content_.node = options.node;
    content_.mesh = mesh_settings(store, options);
  }

  Translation run() {
    add_workloads();
    sort_by_name(content_.workloads);
    add_services();
    sort_by_name(content_.services);
    return {publish(), reports_.merge(store_.statuses())};
  }

 private:
  // Of Pods of one age, those that hold all they claim come first: a newcomer takes nothing from them.
  std::vector<const kube::Entry*> pods_in_order() const {
    auto entries = by_age(store_, "Pod");
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
    const auto& spec = static_cast<const PodSpec&>(*entry.decoded);
    auto before = previous_->find_workload(pod.key.ns, pod.key.name);
    return before && before->uid == (pod.uid.empty() ? pod.key.ns + "/" + pod.key.name : pod.uid) &&
           before->netns == spec.netns && std::ranges::equal(before->addresses, spec.addresses);
  }

  // Pods claim their addresses before Services do: a pod's address is a fact, a VIP a wish.
  void add_workloads() {
    Policies policies(store_, content_.mesh, previous_.get(), reports_);
    for (const auto* entry : pods_in_order()) {
      auto made = make_workload(store_, *entry, content_.mesh.trust_domain, claims_, reports_);
      if (!made) continue;
      Shared<model::Workload> before;
      if (previous_) before = previous_->find_workload(made->ns, made->name);
      made->policy = policies.of(made->ns, made->labels, slices_.ports_of(made->ns + "/" + made->name));
      if (before && before->policy == made->policy) made->policy = before->policy;
      auto workload = reuse(before, std::move(*made));
      by_name_.emplace(workload->ns + "/" + workload->name, workload);
      if (!workload->host_network) {
        for (const auto& address : workload->addresses) by_address_.emplace(address, workload);
      }
      content_.workloads.push_back(std::move(workload));
    }
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
    for (const auto* entry : by_age(store_, "Service")) {
      auto made = make_service(*entry, slices_, rules, options_, find_workload, claims_);
      Shared<model::Service> before;
      if (previous_) before = previous_->find_service(made.ns, made.name);
      content_.services.push_back(reuse(before, std::move(made)));
    }
  }

  std::shared_ptr<const model::Snapshot> publish() {
    if (previous_ && previous_->content().same_content(content_)) return previous_;
    content_.generation = previous_ ? previous_->generation() + 1 : 1;
    return std::make_shared<const model::Snapshot>(std::move(content_));
  }

  const kube::Store& store_;
  const std::shared_ptr<const model::Snapshot>& previous_;
  const TranslateOptions& options_;
  Reports reports_;
  Claims claims_;
  Slices slices_;
  model::SnapshotContent content_;
  std::unordered_map<std::string, Shared<model::Workload>> by_name_;
  std::unordered_map<Addr, Shared<model::Workload>> by_address_;
};

}  // namespace

Translation translate(const kube::Store& store, const std::shared_ptr<const model::Snapshot>& previous,
                      const TranslateOptions& options) {
  return Translator(store, previous, options).run();
}

}  // namespace nodemesh::translate

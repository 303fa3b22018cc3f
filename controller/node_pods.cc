#include "controller/node_pods.h"

#include <algorithm>

#include "kube/fields.h"
#include "translate/core.h"
#include "translate/workloads.h"

namespace nodemesh::controller {

std::optional<PodCard> NodePods::read(const kube::Object& pod) {
  kube::Problems problems;
  kube::Fields fields(&pod.root, problems);
  fields.ignore({"apiVersion", "kind", "metadata"});
  auto decoded = translate::read_pod(pod, fields, problems);
  if (kube::has_error(problems) || pod.uid.empty()) return std::nullopt;
  const auto& spec = static_cast<const translate::PodSpec&>(*decoded);
  if (spec.finished || spec.node.empty()) return std::nullopt;
  model::Workload owner;
  auto redirection = pod.annotations.find(std::string(kRedirection));
  translate::name_owner(pod, owner);
  return PodCard{.ns = pod.key.ns,
                 .name = pod.key.name,
                 .uid = pod.uid,
                 .node = spec.node,
                 .addresses = spec.addresses,
                 .common = shared_.one(
                     PodCard::Template{.ns = pod.key.ns,
                                       .service_account = spec.service_account,
                                       .labels = pod.labels,
                                       .owner_type = owner.workload_type,
                                       .owner_name = owner.workload_type == "pod" ? "" : owner.workload_name,
                                       .protocols = {}}),
                 .runtime_class = spec.runtime_class,
                 .host_network = spec.host_network,
                 .sidecar = pod.annotations.contains(translate::kSidecarStatus),
                 .agent = agents_.contains({pod.key.ns, spec.service_account}),
                 .redirected = redirection != pod.annotations.end() && redirection->second == "enabled",
                 .mark = read_condition(pod.root, kEnrolled)};
}

void NodePods::upsert(const kube::Object& pod) {
  remove(pod.key.ns, pod.key.name);
  auto card = read(pod);
  if (!card) return;
  auto& kept = pods_[{pod.key.ns, pod.key.name}] = std::move(*card);
  Node& node = nodes_[kept.node];
  node.pods.insert(&kept);
  node.agents += kept.agent;
  changed_.insert(kept.node);
}

void NodePods::remove(const std::string& ns, const std::string& name) {
  auto found = pods_.find({ns, name});
  if (found == pods_.end()) return;
  auto node = nodes_.find(found->second.node);
  node->second.agents -= found->second.agent;
  node->second.pods.erase(&found->second);
  changed_.insert(node->first);
  if (node->second.pods.empty()) nodes_.erase(node);
  pods_.erase(found);
}

bool NodePods::has_agent(std::string_view node) const {
  auto found = nodes_.find(node);
  return found != nodes_.end() && found->second.agents > 0;
}

std::vector<const PodCard*> NodePods::on(std::string_view node) const {
  auto found = nodes_.find(node);
  if (found == nodes_.end()) return {};
  return {found->second.pods.begin(), found->second.pods.end()};
}

std::vector<std::string> NodePods::nodes() const {
  std::vector<std::string> out;
  for (const auto& [name, node] : nodes_) out.push_back(name);
  return out;
}

const PodCard* NodePods::find(const std::string& ns, const std::string& name) const {
  auto found = pods_.find({ns, name});
  return found == pods_.end() ? nullptr : &found->second;
}

}  // namespace nodemesh::controller

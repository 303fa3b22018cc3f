#include "model/network.h"

#include <algorithm>

#include "model/workload.h"

namespace nodemesh::model {
namespace {

bool holds(const LabelRequirement& requirement, const std::map<std::string, std::string>& labels) {
  using Operator = LabelRequirement::Operator;
  auto found = labels.find(requirement.key);
  bool among = found != labels.end() &&
               std::ranges::find(requirement.values, found->second) != requirement.values.end();
  switch (requirement.op) {
    case Operator::in:
      return among;
    case Operator::not_in:
      return !among;
    case Operator::exists:
      return found != labels.end();
    case Operator::absent:
      return found == labels.end();
  }
  return false;
}

bool matches(const NetworkPeer& peer, const NetworkFlow& flow) {
  auto contains = [&](const Cidr& range) { return range.contains(flow.peer_address); };
  if (peer.block) return contains(*peer.block) && std::ranges::none_of(peer.except, contains);
  // Of a pod of which nothing is known neither are the labels.
  if (flow.peer == nullptr || flow.peer->mesh == Mesh::unknown) return false;
  return std::ranges::binary_search(peer.namespaces, flow.peer->ns.str()) &&
         selects(peer.pods, flow.peer->labels);
}

// A name that nobody here can resolve, since a pod of another node is not known by its container ports, is
// left to that node, which asks its own policies.
bool matches(const NetworkPort& port, const NetworkFlow& flow) {
  if (port.name.empty()) return flow.port >= port.first && flow.port <= port.last;
  if (flow.server == nullptr || flow.server->origin.kind != "Pod") return true;
  auto found = flow.server->named_ports.find(port.name);
  return found != flow.server->named_ports.end() && found->second == flow.port;
}

bool matches(const NetworkRule& rule, const NetworkFlow& flow) {
  auto fits = [&](const auto& one) { return matches(one, flow); };
  return (!rule.peers || std::ranges::any_of(*rule.peers, fits)) &&
         (!rule.ports || std::ranges::any_of(*rule.ports, fits));
}

}  // namespace

bool selects(const LabelSelector& selector, const std::map<std::string, std::string>& labels) {
  return std::ranges::all_of(selector, [&](const auto& requirement) { return holds(requirement, labels); });
}

const NetworkPolicy* denied_by(std::span<const Shared<NetworkPolicy>> policies, const NetworkFlow& flow) {
  if (policies.empty()) return nullptr;
  for (const auto& policy : policies) {
    for (const auto& rule : policy->rules) {
      if (matches(rule, flow)) return nullptr;
    }
  }
  return policies.front().get();
}

}  // namespace nodemesh::model

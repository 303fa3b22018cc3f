#include "translate/network_policy.h"

#include <algorithm>
#include <array>

namespace nodemesh::translate {
namespace {

using kube::Fields;
using kube::Node;
using kube::Problems;
using kube::Severity;
using model::LabelRequirement;
using model::LabelSelector;
using Spec = NetworkPolicySpec;

LabelSelector read_label_selector(const Node* node, Problems& problems) {
  using Operator = LabelRequirement::Operator;
  static constexpr std::array<std::pair<std::string_view, Operator>, 4> kOperators{
      {{"In", Operator::in},
       {"NotIn", Operator::not_in},
       {"Exists", Operator::exists},
       {"DoesNotExist", Operator::absent}}};
  LabelSelector out;
  Fields selector(node, problems);
  for (auto& [key, value] : selector.text_map("matchLabels")) out.push_back({key, Operator::in, {value}});
  for (const auto& item : selector.maps("matchExpressions")) {
    Fields expression(&item, problems);
    LabelRequirement requirement{.key = expression.text("key").value_or("")};
    auto op = expression.one_of<Operator>("operator", kOperators);
    if (!item.find("operator")) expression.missing("operator", "write In, NotIn, Exists or DoesNotExist");
    requirement.op = op.value_or(Operator::in);
    requirement.values = expression.texts("values");
    out.push_back(std::move(requirement));
  }
  return out;
}

std::optional<Cidr> read_cidr(const Node& node, Problems& problems) {
  auto cidr = Cidr::parse(node.text);
  if (!cidr) {
    report(problems, Severity::error, node, "\"" + node.text + "\" is not a CIDR range",
           "write an address and a prefix length, for example 10.0.0.0/8");
  }
  return cidr;
}

Spec::Peer read_peer(const Node& node, Problems& problems) {
  Spec::Peer peer;
  Fields fields(&node, problems);
  if (const Node* block = fields.map("ipBlock")) {
    Fields range(block, problems);
    const Node* cidr = range.any("cidr");
    if (!cidr) range.missing("cidr", "write the range");
    // Nothing is in the empty range, so that a wrong one allows nobody.
    peer.block = (cidr ? read_cidr(*cidr, problems) : std::nullopt).value_or(Cidr{.bits = 128});
    for (const auto& item : range.list("except")) {
      if (auto except = read_cidr(item, problems)) peer.except.push_back(*except);
    }
  }
  if (const Node* namespaces = fields.map("namespaceSelector"))
    peer.namespaces = read_label_selector(namespaces, problems);
  peer.pods = read_label_selector(fields.map("podSelector"), problems);
  return peer;
}

// TCP alone; ports of other protocols are none of ours.
void read_port(const Node& node, std::vector<model::NetworkPort>& ports, Problems& problems) {
  Fields fields(&node, problems);
  auto protocol = fields.text("protocol").value_or("TCP");
  const Node* port = fields.any("port");
  auto last = fields.integer("endPort", 1, 65535);
  if (protocol != "TCP") return;
  if (!port) return ports.push_back({});
  if (port->type != Node::Type::integer) return ports.push_back({.name = port->text});
  Fields again(&node, problems);
  again.ignore({"protocol", "endPort"});
  auto first = static_cast<uint16_t>(again.integer("port", 1, 65535).value_or(0));
  ports.push_back({.first = first, .last = static_cast<uint16_t>(last.value_or(first))});
}

std::vector<Spec::Rule> read_rules(Fields& spec, const char* key, const char* peers_key, Problems& problems) {
  std::vector<Spec::Rule> out;
  for (const auto& item : spec.maps(key)) {
    Fields fields(&item, problems);
    Spec::Rule rule;
    // An empty list is as good as none: anybody, any port.
    if (auto peers = fields.maps(peers_key); !peers.empty()) {
      rule.peers.emplace();
      for (const auto& peer : peers) rule.peers->push_back(read_peer(peer, problems));
    }
    if (auto ports = fields.maps("ports"); !ports.empty()) {
      rule.ports.emplace();
      for (const auto& port : ports) read_port(port, *rule.ports, problems);
    }
    out.push_back(std::move(rule));
  }
  return out;
}

// Namespaces have their name as a label (Kubernetes 1.22), which manifests need not spell out.
Labels labels_of(const kube::Object& ns) {
  auto labels = ns.labels;
  labels["kubernetes.io/metadata.name"] = ns.key.name;
  return labels;
}

model::Shared<model::NetworkPolicy> compile(const kube::Object& object, const std::vector<Spec::Rule>& rules,
                                            const std::vector<std::pair<std::string, Labels>>& namespaces) {
  model::NetworkPolicy out{.origin = object.origin()};
  for (const auto& from : rules) {
    model::NetworkRule rule{.ports = from.ports};
    if (from.peers) rule.peers.emplace();
    for (const auto& peer : from.peers.value_or(std::vector<Spec::Peer>{})) {
      model::NetworkPeer made{.block = peer.block, .except = peer.except, .pods = peer.pods};
      if (!peer.namespaces) made.namespaces = {object.key.ns};
      for (const auto& [name, labels] : namespaces) {
        if (peer.namespaces && model::selects(*peer.namespaces, labels)) made.namespaces.push_back(name);
      }
      rule.peers->push_back(std::move(made));
    }
    out.rules.push_back(std::move(rule));
  }
  return std::make_shared<const model::NetworkPolicy>(std::move(out));
}

}  // namespace

std::shared_ptr<const kube::Decoded> read_network_policy(const kube::Object&, Fields& fields,
                                                         Problems& problems) {
  auto policy = std::make_shared<NetworkPolicySpec>();
  Fields spec(fields.map("spec"), problems);
  if (!spec) fields.missing("spec", "write the policy's podSelector and rules");
  policy->pods = read_label_selector(spec.map("podSelector"), problems);
  policy->ingress = read_rules(spec, "ingress", "from", problems);
  policy->egress = read_rules(spec, "egress", "to", problems);
  auto types = spec.texts("policyTypes");
  auto has = [&](std::string_view type) { return std::ranges::find(types, type) != types.end(); };
  // networking.k8s.io/v1: without types always ingress, and egress where it has rules.
  policy->for_ingress = types.empty() || has("Ingress");
  policy->for_egress = types.empty() ? !policy->egress.empty() : has("Egress");
  fields.ignore({"status"});
  return policy;
}

NetworkPolicies::NetworkPolicies(const kube::Store& store) {
  std::vector<std::pair<std::string, Labels>> namespaces;  // sorted by name, as the store has them
  for (const auto& entry : store.objects("Namespace"))
    namespaces.emplace_back(entry.object->key.name, labels_of(*entry.object));
  for (const auto& entry : store.objects("NetworkPolicy")) {
    const auto& spec = static_cast<const NetworkPolicySpec&>(*entry.decoded);
    Compiled made{.spec = &spec};
    if (spec.for_ingress) made.ingress = compile(*entry.object, spec.ingress, namespaces);
    if (spec.for_egress) made.egress = compile(*entry.object, spec.egress, namespaces);
    by_namespace_[entry.object->key.ns].push_back(std::move(made));
  }
}

model::Shared<model::NetworkPolicies> NetworkPolicies::of(const std::string& ns, const Labels& labels) const {
  auto found = by_namespace_.find(ns);
  if (found == by_namespace_.end()) return {};
  model::NetworkPolicies out;
  for (const auto& policy : found->second) {
    if (!model::selects(policy.spec->pods, labels)) continue;
    if (policy.ingress) out.ingress.push_back(policy.ingress);
    if (policy.egress) out.egress.push_back(policy.egress);
  }
  if (out.ingress.empty() && out.egress.empty()) return {};
  return std::make_shared<const model::NetworkPolicies>(std::move(out));
}

}  // namespace nodemesh::translate

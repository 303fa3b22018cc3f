#include "translate/services.h"

#include <algorithm>
#include <unordered_set>

namespace nodemesh::translate {
namespace {

using kube::Severity;
using model::Endpoint;
using model::ServicePort;

const EndpointSliceSpec& slice_of(const kube::Entry& entry) {
  return static_cast<const EndpointSliceSpec&>(*entry.decoded);
}
const DestinationRuleSpec& rule_of(const kube::Entry& entry) {
  return static_cast<const DestinationRuleSpec&>(*entry.decoded);
}

// 0 = may get new connections first, 1 = only while nobody is in 0, 2 = never.
int usability(const Endpoint& endpoint, const ServiceSpec& service, const std::string& node) {
  if (service.local_only && endpoint.node != node) return 2;
  if (endpoint.ready || service.publish_not_ready) return 0;
  return endpoint.serving && endpoint.terminating ? 1 : 2;
}

// Orders the endpoints as model::ServicePort wants them. Each family is judged for itself, since it has
// slices of its own.
void sort_usable(ServicePort& port, const ServiceSpec& service, const std::string& node) {
  std::vector<Endpoint> sorted, rest;
  sorted.reserve(port.endpoints.size());
  for (bool v4 : {true, false}) {
    int best = 2;
    for (const auto& endpoint : port.endpoints) {
      if (endpoint.address.is_v4() == v4) best = std::min(best, usability(endpoint, service, node));
    }
    for (auto& endpoint : port.endpoints) {
      if (endpoint.address.is_v4() != v4) continue;
      bool usable = best < 2 && usability(endpoint, service, node) == best;
      if (usable) ++(v4 ? port.usable_v4 : port.usable_v6);
      (usable ? sorted : rest).push_back(std::move(endpoint));
    }
  }
  port.endpoints = std::move(sorted);
  port.endpoints.insert(port.endpoints.end(), std::make_move_iterator(rest.begin()),
                        std::make_move_iterator(rest.end()));
}

void add_endpoints(ServicePort& port, const std::string& ns, std::span<const kube::Entry* const> slices,
                   const FindWorkload& find_workload) {
  std::unordered_set<SockAddr> there;  // while a pod moves between slices it may be in two of them
  for (const auto* entry : slices) {
    const auto& slice = slice_of(*entry);
    auto target = std::ranges::find(slice.ports, port.name, &EndpointSliceSpec::Port::name);
    if (target == slice.ports.end()) continue;
    port.endpoints.reserve(port.endpoints.size() + slice.endpoints.size());
    for (const auto& from : slice.endpoints) {
      Endpoint endpoint{from.address, target->port, find_workload(ns, from.pod, from.address),
                        from.ready,   from.serving, from.terminating,
                        from.node,    from.zone};
      if (endpoint.workload) {
        endpoint.node.share(endpoint.workload->node);
        endpoint.zone.share(endpoint.workload->zone);
        if (endpoint.node.empty()) endpoint.node = endpoint.workload->node;
      }
      if (there.insert(endpoint.target()).second) port.endpoints.push_back(std::move(endpoint));
    }
  }
}

}  // namespace

Slices::Slices(const kube::Store& store, std::string_view node, Reports& reports) {
  for (const auto& entry : store.objects("EndpointSlice")) {
    const auto& slice = slice_of(entry);
    const auto& ns = entry.object->key.ns;
    if (slice.service.empty()) continue;
    if (!store.find("Service", ns, slice.service)) {
      reports.add(
          *entry.object, Severity::warning, "metadata.labels",
          "there is no Service \"" + slice.service + "\" in namespace " + ns + ", so the slice has no effect",
          "correct the label kubernetes.io/service-name, or add the Service");
      continue;
    }
    by_service_[{ns, slice.service}].push_back(&entry);
    for (const auto& endpoint : slice.endpoints) {
      bool elsewhere = !node.empty() && !endpoint.node.empty() && endpoint.node != node;
      if (endpoint.pod.empty() || elsewhere) continue;
      auto& ports = by_pod_[ns + "/" + endpoint.pod][slice.service];
      for (const auto& port : slice.ports) {
        if (std::ranges::find(ports, port.port) == ports.end()) ports.push_back(port.port);
      }
    }
  }
}

std::span<const kube::Entry* const> Slices::of(std::string_view ns, std::string_view service) const {
  auto found = by_service_.find({ns, service});
  return found == by_service_.end() ? std::span<const kube::Entry* const>{} : std::span(found->second);
}

const Policies::PortsByService& Slices::ports_of(const std::string& pod) const {
  static const Policies::PortsByService kNone;
  auto found = by_pod_.find(pod);
  return found == by_pod_.end() ? kNone : found->second;
}

BalancerRules::BalancerRules(const kube::Store& store, const std::string& root_namespace,
                             const std::string& cluster_domain, Reports& reports)
    : root_namespace_(root_namespace) {
  for (const auto& entry : store.objects("DestinationRule")) {
    const auto& rule = rule_of(entry);
    const auto& ns = entry.object->key.ns;
    if (rule.limited) continue;
    std::string suffix = "." + ns + ".svc." + cluster_domain;
    bool own = rule.host.ends_with(suffix);
    if (ns != root_namespace && !own) {
      reports.add(*entry.object, Severity::warning, "spec.host",
                  "the host is not in the rule's namespace; rules for clients of one namespace are not "
                  "supported in this release, "
                  "so it has no effect",
                  "move the rule to the Service's namespace or to " + root_namespace);
      continue;
    }
    auto name = rule.host.substr(0, rule.host.size() - (own ? suffix.size() : 0));
    if (own && !name.starts_with('*') && !store.find("Service", ns, name)) {
      reports.add(*entry.object, Severity::warning, "spec.host",
                  "there is no Service \"" + name + "\" in namespace " + ns,
                  "correct the host, or add the Service");
    }
    by_namespace_[ns].push_back(&entry);
  }
  auto better = [](const kube::Entry* a, const kube::Entry* b) {
    const auto &left = rule_of(*a).host, &right = rule_of(*b).host;
    if (left.starts_with('*') != right.starts_with('*')) return right.starts_with('*');
    if (left.size() != right.size()) return left.size() > right.size();
    return older(*a->object, *b->object);
  };
  for (auto& [ns, rules] : by_namespace_) std::ranges::sort(rules, better);
}

const kube::Entry* BalancerRules::find(const std::string& ns, const std::string& host) const {
  for (const auto& scope : {ns, root_namespace_}) {
    auto found = by_namespace_.find(scope);
    if (found == by_namespace_.end()) continue;
    for (const auto* entry : found->second) {
      if (rule_of(*entry).matches(host)) return entry;
    }
  }
  return nullptr;
}

model::Service make_service(const kube::Entry& entry, const Slices& slices, const BalancerRules& rules,
                            const TranslateOptions& options, const FindWorkload& find_workload,
                            std::vector<Addr> vips) {
  const auto& object = *entry.object;
  const auto& spec = static_cast<const ServiceSpec&>(*entry.decoded);
  model::Service service{.origin = object.origin(), .ns = object.key.ns, .name = object.key.name};
  service.host = service.name + "." + service.ns + ".svc." + options.cluster_domain;
  service.headless = spec.headless;
  service.external_name = spec.external_name;
  service.publish_not_ready = spec.publish_not_ready;
  service.local_only = spec.local_only;
  service.client_ip_affinity = spec.client_ip_affinity;
  service.vips = std::move(vips);
  const auto* rule = rules.find(service.ns, service.host);
  for (const auto& from : spec.ports) {
    ServicePort port{.name = from.name, .port = from.port, .protocol = from.protocol};
    if (rule) {
      auto override = rule_of(*rule).port_lb.find(port.port);
      port.lb = override == rule_of(*rule).port_lb.end() ? rule_of(*rule).lb : override->second;
      port.lb_origin = rule->object->origin("spec.trafficPolicy");
    }
    add_endpoints(port, service.ns, slices.of(service.ns, service.name), find_workload);
    sort_usable(port, spec, options.node);
    service.ports.push_back(std::move(port));
  }
  return service;
}

namespace {

bool is_made_of(const ServiceMemory::Made& made, const kube::Entry& entry,
                std::span<const kube::Entry* const> slices, const kube::Entry* rule,
                const std::vector<Addr>& vips) {
  auto same = [](const kube::Entry& a, const kube::Entry* b) { return a.object == b->object; };
  return made.result && made.service.object == entry.object && made.vips == vips &&
         made.rule == (rule ? rule->object : nullptr) && std::ranges::equal(made.slices, slices, same);
}

bool endpoints_stay(const model::Service& service, const FindWorkload& find_workload) {
  for (const auto& port : service.ports) {
    for (const auto& endpoint : port.endpoints) {
      // By its address alone: of several that are found by name, each still has the address.
      auto now =
          find_workload(service.ns, endpoint.workload ? endpoint.workload->name : "", endpoint.address);
      if (now.get() != endpoint.workload.get()) return false;
    }
  }
  return true;
}

}  // namespace

model::Shared<model::Service> make_service(const kube::Entry& entry, const Slices& slices,
                                           const BalancerRules& rules, const TranslateOptions& options,
                                           const FindWorkload& find_workload, Claims& claims,
                                           ServiceMemory& memory) {
  const auto& key = entry.object->key;
  std::vector<Addr> vips;
  for (const auto& vip : static_cast<const ServiceSpec&>(*entry.decoded).vips) {
    if (claims.take(vip, *entry.object, "spec.clusterIP")) vips.push_back(vip);
  }
  auto own = slices.of(key.ns, key.name);
  const auto* rule = rules.find(key.ns, key.name + "." + key.ns + ".svc." + options.cluster_domain);
  auto& made = memory.by_name[{key.ns, key.name}];
  made.round = memory.round;
  if (is_made_of(made, entry, own, rule, vips) && endpoints_stay(*made.result, find_workload))
    return made.result;
  made.service = entry;
  made.slices.clear();
  for (const auto* slice : own) made.slices.push_back(*slice);
  made.rule = rule ? rule->object : nullptr;
  made.vips = vips;
  auto fresh = make_service(entry, slices, rules, options, find_workload, std::move(vips));
  if (!made.result || !(*made.result == fresh))
    made.result = std::make_shared<const model::Service>(std::move(fresh));
  return made.result;
}

}  // namespace nodemesh::translate

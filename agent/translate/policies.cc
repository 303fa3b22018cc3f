#include "translate/policies.h"

#include <algorithm>
#include <iterator>

namespace nodemesh::translate {
namespace {

using kube::Severity;
using model::Shared;

Shared<model::Policy> compile(const AuthorizationPolicySpec& spec, const kube::Object& object,
                              const model::MeshSettings& mesh,
                              const std::map<std::string, Shared<model::Policy>>& previous) {
  model::Policy policy = spec.policy;
  expand_trust_domains(policy, mesh.trust_domain, mesh.trust_domain_aliases);
  auto found = previous.find(object.key.ns + "/" + object.key.name);
  if (found != previous.end() && *found->second == policy) return found->second;
  return std::make_shared<const model::Policy>(std::move(policy));
}

std::map<std::string, Shared<model::Policy>> compiled_in(const model::Snapshot* snapshot) {
  std::map<std::string, Shared<model::Policy>> policies;
  if (!snapshot) return policies;
  const model::WorkloadPolicy* last = nullptr;
  for (const auto& workload : snapshot->pods()) {
    if (!workload->policy || std::exchange(last, workload->policy.get()) == workload->policy.get()) continue;
    for (const auto& applied : workload->policy->policies) {
      policies.try_emplace(applied.policy->origin.ns + "/" + applied.policy->origin.name, applied.policy);
    }
  }
  return policies;
}

template <class Map>
void sort_oldest_first(Map& by_namespace) {
  for (auto& [ns, items] : by_namespace) {
    std::ranges::sort(items, [](const auto& a, const auto& b) { return older(*a.object, *b.object); });
  }
}

}  // namespace

bool older(const kube::Object& a, const kube::Object& b) {
  auto key = [](const kube::Object& o) {
    return std::tuple(o.creation_timestamp.empty(), std::string_view(o.creation_timestamp),
                      std::string_view(o.key.ns), std::string_view(o.key.name), std::string_view(o.key.kind));
  };
  return key(a) < key(b);
}

Policies::Policies(const kube::Store& store, const model::MeshSettings& mesh, const model::Snapshot* previous,
                   Reports& reports)
    : mesh_(mesh) {
  add_peers(store, reports);
  add_authorizations(store, previous, reports);
}

void Policies::add_peers(const kube::Store& store, Reports& reports) {
  for (const auto& entry : store.objects("PeerAuthentication")) {
    auto* spec = static_cast<const PeerAuthenticationSpec*>(entry.decoded.get());
    if (spec->selector && !spec->selector->empty() && entry.object->key.ns == mesh_.root_namespace) {
      reports.add(*entry.object, Severity::warning, "spec.selector",
                  "a PeerAuthentication with a selector has no effect in the root namespace",
                  "move it to the namespace of the workloads, or remove the selector");
      continue;
    }
    peers_[entry.object->key.ns].push_back({entry.object.get(), spec});
  }
  sort_oldest_first(peers_);
  for (const auto& [ns, peers] : peers_) {
    const kube::Object* first = nullptr;
    for (const auto& peer : peers) {
      if (peer.spec->selector && !peer.spec->selector->empty()) continue;
      if (first) {
        reports.add(
            *peer.object, Severity::warning, "",
            "has no effect: " + first->origin().to_string() + " is older and is for the whole namespace too",
            "remove one of the two");
      } else {
        first = peer.object;
      }
    }
  }
}

void Policies::add_authorizations(const kube::Store& store, const model::Snapshot* previous,
                                  Reports& reports) {
  auto compiled = compiled_in(previous);
  for (const auto& entry : store.objects("AuthorizationPolicy")) {
    auto* spec = static_cast<const AuthorizationPolicySpec*>(entry.decoded.get());
    const auto& object = *entry.object;
    if (spec->audit) continue;
    for (const auto& target : spec->targets) {
      if (store.find("Service", object.key.ns, target.name)) continue;
      reports.add(object, {Severity::warning, "", target.line, target.column, target.field,
                           "there is no Service \"" + target.name + "\" in namespace " + object.key.ns +
                               ", so it has no effect",
                           "correct the name, or add the Service"});
    }
    authorizations_[object.key.ns].push_back({&object, spec, compile(*spec, object, mesh_, compiled)});
  }
  sort_oldest_first(authorizations_);
}

// Workload over namespace over mesh; UNSET inherits; the oldest of a scope counts.
void Policies::add_mtls(model::WorkloadPolicy& out, const std::string& ns, const Labels& labels) const {
  auto scope = [&](const std::string& where, bool selecting) -> const Peer* {
    auto found = peers_.find(where);
    if (found == peers_.end()) return nullptr;
    for (const auto& peer : found->second) {
      bool has_selector = peer.spec->selector && !peer.spec->selector->empty();
      if (has_selector == selecting && (!selecting || selects(*peer.spec->selector, labels))) return &peer;
    }
    return nullptr;
  };
  const Peer* workload = scope(ns, true);
  for (const Peer* peer : {scope(mesh_.root_namespace, false), scope(ns, false), workload}) {
    if (peer && peer->spec->mode) out.mtls = {*peer->spec->mode, peer->object->origin()};
  }
  if (!workload) return;
  for (const auto& [port, mode] : workload->spec->ports) {
    if (mode)
      out.port_mtls.push_back(
          {port, {*mode, workload->object->origin("spec.portLevelMtls." + std::to_string(port))}});
  }
}

void Policies::add_policies(model::WorkloadPolicy& out, const std::string& scope, const Labels& labels,
                            const PortsByService* services) const {
  auto found = authorizations_.find(scope);
  if (found == authorizations_.end()) return;
  for (const auto& [object, spec, policy] : found->second) {
    model::AppliedPolicy applied{policy, {}};
    if (spec->has_targets) {
      if (!services) continue;  // a target is in the policy's own namespace
      for (const auto& target : spec->targets) {
        auto ports = services->find(target.name);
        if (ports != services->end())
          applied.ports.insert(applied.ports.end(), ports->second.begin(), ports->second.end());
      }
      if (applied.ports.empty()) continue;
      std::ranges::sort(applied.ports);
      applied.ports.erase(std::unique(applied.ports.begin(), applied.ports.end()), applied.ports.end());
    } else if (spec->selector && !selects(*spec->selector, labels)) {
      continue;
    }
    out.policies.push_back(std::move(applied));
  }
}

Shared<model::WorkloadPolicy> Policies::of(const std::string& ns, const Labels& labels,
                                           const PortsByService& services) {
  auto [made, fresh] = made_.try_emplace({ns, labels, services});
  if (!fresh) return made->second;
  model::WorkloadPolicy all, policy;
  add_mtls(policy, ns, labels);
  if (ns != mesh_.root_namespace) add_policies(all, mesh_.root_namespace, labels, nullptr);
  add_policies(all, ns, labels, &services);
  for (auto action : {model::Action::custom, model::Action::deny, model::Action::allow}) {
    std::ranges::copy_if(all.policies, std::back_inserter(policy.policies),
                         [&](const auto& applied) { return applied.policy->action == action; });
  }
  made->second = std::make_shared<const model::WorkloadPolicy>(std::move(policy));
  return made->second;
}

}  // namespace nodemesh::translate

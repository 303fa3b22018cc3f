// Cluster: the facts, as checks look at them.
#include <algorithm>

#include <fmt/format.h>

#include "ctl/check.h"
#include "ctl/check_words.h"
#include "ctl/json_at.h"
#include "kube/json.h"
#include "translate/translate.h"

namespace nodemesh::ctl {
namespace {

// The lists that agents read too, put before the same code.
void fill(kube::Store& store, const Facts& facts) {
  for (const auto& source : fact_sources()) {
    auto known = std::ranges::any_of(translate::kinds(), [&](const kube::Kind& kind) {
      return kind.name == source.kind && std::string_view(source.api_version).starts_with(kind.group);
    });
    // Slices would stand for pods that are here themselves.
    if (!known || source.kind == std::string_view("WorkloadSlice")) continue;
    for (const auto& item : facts.all(source.name)) {
      auto root = kube::parse_json(item.dump(-1, ' ', false, Json::error_handler_t::replace));
      if (root) store.upsert(kube::make_api_object(std::move(*root), source.kind, source.api_version));
    }
  }
}

// What the installed agents were told by flags.
translate::TranslateOptions options_of(const Facts& facts) {
  translate::TranslateOptions options;
  for (const auto& daemon : facts.all("daemonsets")) {
    if (text_of(daemon, "metadata", "namespace") != facts.ns) continue;
    if (auto domain = flag_of_agent(daemon, "--trust-domain"); !domain.empty()) options.trust_domain = domain;
    if (auto root = flag_of_agent(daemon, "--root-namespace"); !root.empty())
      options.mesh_config_namespace = root;
  }
  return options;
}

bool has_labels(const Json& object, const Json& selector) {
  if (!selector.is_object()) return false;
  for (const auto& [key, value] : selector.items()) {
    if (json_at(object, "metadata", "labels", key) != value) return false;
  }
  return true;
}

std::string place(std::string_view list, const Json& item) {
  return fmt::format("{}/{}/{}", list, text_of(item, "metadata", "namespace"),
                     text_of(item, "metadata", "name"));
}

}  // namespace

Cluster::Cluster(const Facts& from) : facts(from) {
  kube::Store store(translate::kinds());
  fill(store, facts);
  auto made = translate::translate(store, nullptr, options_of(facts));
  snapshot = std::move(made.snapshot);
  statuses = std::move(made.statuses);
  for (const auto& pod : facts.all("pods")) pods_[text_of(pod, "metadata", "namespace")].push_back(&pod);
  for (const auto& [list, found] : facts.lists) {
    for (const auto& item : found.items) objects_.emplace(place(list, item), &item);
  }
}

const model::Workload* Cluster::workload(const Json& pod) const {
  return snapshot->find_workload(text_of(pod, "metadata", "namespace"), text_of(pod, "metadata", "name"))
      .get();
}

bool Cluster::enrolled(const Json& pod) const {
  const auto* found = workload(pod);
  return found != nullptr && found->enrolled;
}

bool Cluster::strict(const Json& pod) const {
  const auto* found = workload(pod);
  if (found == nullptr || !found->enrolled || !found->policy) return false;
  bool any_port = false;
  for (const auto& container : items_of(pod, "spec", "containers")) {
    for (const auto& port : items_of(container, "ports")) {
      any_port = true;
      if (strict_at(pod, static_cast<uint16_t>(number_of(port, "containerPort")))) return true;
    }
  }
  return !any_port && found->policy->mtls.mode == model::MtlsMode::strict;
}

bool Cluster::strict_at(const Json& pod, uint16_t port) const {
  const auto* found = workload(pod);
  return found != nullptr && found->enrolled && found->policy &&
         found->policy->mtls_at(port).mode == model::MtlsMode::strict;
}

std::vector<const Json*> Cluster::select(std::string_view ns, const Json& selector) const {
  std::vector<const Json*> out;
  for (const auto& [of, pods] : pods_) {
    if (!ns.empty() && of != ns) continue;
    std::ranges::copy_if(pods, std::back_inserter(out),
                         [&](const Json* pod) { return has_labels(*pod, selector); });
  }
  return out;
}

const Json* Cluster::object(std::string_view list, std::string_view ns, std::string_view name) const {
  auto found = objects_.find(fmt::format("{}/{}/{}", list, ns, name));
  return found == objects_.end() ? nullptr : found->second;
}

std::vector<const Json*> Cluster::agents() const {
  return select(facts.ns, {{"app.kubernetes.io/name", "nodemesh"}, {"app.kubernetes.io/component", "agent"}});
}

const std::string& Cluster::root_namespace() const {
  return snapshot->mesh().root_namespace;
}

}  // namespace nodemesh::ctl

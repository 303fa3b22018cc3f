#include "translate/workloads.h"

#include <algorithm>

namespace nodemesh::translate {
namespace {

using kube::Object;
using kube::Severity;

void warn_of_unknown_mode(const Object& object, Reports& reports) {
  auto mode = object.label(kDataplaneMode);
  if (mode.empty() || mode == "ambient" || mode == "none") return;
  reports.add(object, Severity::warning, "metadata.labels",
              "label " + std::string(kDataplaneMode) + " has the unknown value \"" + std::string(mode) +
                  "\" and has no effect",
              "write ambient or none");
}

bool is_enrolled(const kube::Store& store, const Object& pod, const Object& ns, const PodSpec& spec,
                 Reports& reports) {
  warn_of_unknown_mode(pod, reports);
  const std::string* handler = runtime_handler(store, spec.runtime_class);
  auto enrolment = judge_enrolment({.pod_mode = pod.label(kDataplaneMode),
                                    .namespace_mode = ns.label(kDataplaneMode),
                                    .host_network = spec.host_network,
                                    .sidecar = pod.annotations.contains(kSidecarStatus),
                                    .handler = handler ? *handler : std::string_view()});
  if (enrolment == Enrolment::sidecar) {
    reports.add(pod, Severity::warning, "metadata.annotations",
                "the Pod has an Istio sidecar, so it is not enrolled",
                "remove the sidecar, or label the Pod istio.io/dataplane-mode=none");
  } else if (enrolment == Enrolment::runtime) {
    reports.add(
        pod, Severity::warning, "spec.runtimeClassName",
        "the Pod runs with handler \"" + *handler + "\", so it is not enrolled",
        "use a RuntimeClass with handler runc or crun, or label the Pod istio.io/dataplane-mode=none");
  }
  return enrolment == Enrolment::enrolled;
}

bool all_digits(std::string_view text, size_t min, size_t max) {
  return text.size() >= min && text.size() <= max &&
         std::ranges::all_of(text, [](unsigned char c) { return std::isdigit(c); });
}

// Which address, uid and network namespace are this Pod's, as far as no older object has them.
void take_claims(const Object& pod, const PodSpec& spec, model::Workload& workload, Claims& claims) {
  workload.uid = pod.key.ns + "/" + pod.key.name;
  if (!pod.uid.empty() && claims.take("uid " + pod.uid, pod, "metadata.uid")) workload.uid = pod.uid;
  if (!spec.netns.empty() && claims.take("network namespace " + spec.netns, pod, "metadata.annotations"))
    workload.netns = spec.netns;
  for (const auto& address : spec.addresses) {
    // Pods in the host's network share the node's addresses.
    if (spec.host_network || claims.take(address, pod, "status.podIPs"))
      workload.addresses.push_back(address);
  }
}

// The uid travels between warden and proxy in a field of fixed size.
bool check_uid(const model::Workload& workload, const Object& pod, Reports& reports) {
  bool plain = std::ranges::none_of(workload.uid.str(), [](unsigned char c) { return c < 0x20; });
  if (plain && workload.uid.size() <= model::kMaxUid) return true;
  reports.add(
      pod, Severity::error, "metadata.uid",
      "the Pod's uid (or its namespace/name, where it has none of its own) is longer than 63 bytes or has "
      "control characters",
      "write a metadata.uid of at most 63 printable characters");
  return false;
}

}  // namespace

const std::string* runtime_handler(const kube::Store& store, const std::string& runtime_class) {
  if (runtime_class.empty()) return nullptr;
  const auto* entry = store.find("RuntimeClass", "", runtime_class);
  return entry ? &static_cast<const RuntimeClassSpec&>(*entry->decoded).handler : &runtime_class;
}

Enrolment judge_enrolment(const EnrolmentFacts& facts) {
  bool wanted =
      facts.pod_mode == "ambient" || (facts.pod_mode != "none" && facts.namespace_mode == "ambient");
  if (!wanted) return Enrolment::unwanted;
  if (facts.host_network) return Enrolment::host_network;
  if (facts.sidecar) return Enrolment::sidecar;
  bool in_kernel = facts.handler.empty() || facts.handler == "runc" || facts.handler == "crun";
  return in_kernel ? Enrolment::enrolled : Enrolment::runtime;
}

void name_owner(const Object& pod, model::Workload& workload) {
  workload.workload_name = pod.key.name;
  workload.workload_type = "pod";
  const kube::OwnerReference* owner = nullptr;
  for (const auto& candidate : pod.owners) {
    if (candidate.controller || (pod.owners.size() == 1 && !owner)) owner = &candidate;
  }
  if (!owner || owner->name.empty()) return;
  workload.workload_name = owner->name;
  std::string type = owner->kind;
  std::ranges::transform(type, type.begin(), [](unsigned char c) { return std::tolower(c); });
  workload.workload_type = std::move(type);
  auto suffix = owner->name.substr(std::min(owner->name.rfind('-'), owner->name.size()));
  auto hash = pod.label("pod-template-hash");
  if (owner->kind == "ReplicaSet" && !hash.empty() && suffix == "-" + std::string(hash)) {
    workload.workload_type = "deployment";
  } else if (owner->kind == "Job" && suffix.size() > 1 &&
             all_digits(std::string_view(suffix).substr(1), 8, 10)) {
    workload.workload_type = "cronjob";
  } else {
    return;
  }
  workload.workload_name = owner->name.substr(0, owner->name.size() - suffix.size());
}

void name_from_labels(model::Workload& workload) {
  auto first_of = [&](std::initializer_list<const char*> labels, const std::string& fallback) {
    for (auto label : labels) {
      auto found = workload.labels->find(label);
      if (found != workload.labels->end() && !found->second.empty()) return found->second;
    }
    return fallback;
  };
  workload.workload_name = first_of({"service.istio.io/workload-name"}, workload.workload_name);
  workload.app = first_of({"app", "app.kubernetes.io/name"}, "unknown");
  workload.version = first_of({"version", "app.kubernetes.io/version"}, "unknown");
  workload.canonical_name =
      first_of({"service.istio.io/canonical-name", "app.kubernetes.io/name", "app"}, workload.workload_name);
  workload.canonical_revision =
      first_of({"service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"}, "latest");
}

void place(const kube::Store& store, model::Workload& workload) {
  const auto* node = store.find("Node", "", workload.node);
  if (!node) return;
  workload.region = node->object->label("topology.kubernetes.io/region");
  workload.zone = node->object->label("topology.kubernetes.io/zone");
}

std::optional<model::Workload> make_workload(const kube::Store& store, const kube::Entry& entry,
                                             const std::string& trust_domain, Claims& claims,
                                             Reports& reports) {
  const auto& pod = *entry.object;
  const auto& spec = static_cast<const PodSpec&>(*entry.decoded);
  const auto* ns = store.find("Namespace", "", pod.key.ns);
  if (!ns) {
    reports.add(pod, Severity::error, "metadata.namespace", "there is no Namespace \"" + pod.key.ns + "\"",
                "add the Namespace to the folder, or correct the name");
    return std::nullopt;
  }
  if (spec.finished) return std::nullopt;
  if (spec.service_account != "default" && !store.find("ServiceAccount", pod.key.ns, spec.service_account)) {
    reports.add(pod, Severity::warning, "spec.serviceAccountName",
                "there is no ServiceAccount \"" + spec.service_account + "\" in namespace " + pod.key.ns,
                "add the ServiceAccount, or correct the name");
  }
  model::Workload workload{.origin = pod.origin(), .ns = pod.key.ns, .name = pod.key.name};
  workload.service_account = spec.service_account;
  workload.identity = model::spiffe_id(trust_domain, workload.ns, workload.service_account);
  workload.node = spec.node;
  workload.labels = pod.labels;
  workload.named_ports = spec.named_ports;
  workload.probe_ports = spec.probe_ports;
  workload.host_network = spec.host_network;
  take_claims(pod, spec, workload, claims);
  if (!check_uid(workload, pod, reports)) return std::nullopt;
  place(store, workload);
  name_owner(pod, workload);
  name_from_labels(workload);
  workload.enrolled = is_enrolled(store, pod, *ns->object, spec, reports);
  workload.mesh = workload.enrolled ? model::Mesh::hbone : model::Mesh::none;
  return workload;
}

}  // namespace nodemesh::translate

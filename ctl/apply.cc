#include "ctl/apply.h"

#include <poll.h>

#include <algorithm>
#include <ostream>
#include <set>

#include <fmt/format.h>

#include "base/clock.h"
#include "ctl/check_words.h"
#include "ctl/context.h"
#include "ctl/json_at.h"

namespace nodemesh::ctl {
namespace {

constexpr seconds kEstablish{30};
constexpr int kBetweenLooks = 200;  // ms
constexpr const char* kManager = "nodemesh-meshctl";

// In the order in which they are taken away: what runs first, what it needs last.
constexpr OwnKind kKinds[] = {
    {"DaemonSet", "apps/v1", "daemonsets", true},
    {"Deployment", "apps/v1", "deployments", true},
    {"PodDisruptionBudget", "policy/v1", "poddisruptionbudgets", true},
    {"PodMonitor", "monitoring.coreos.com/v1", "podmonitors", true},
    {"PrometheusRule", "monitoring.coreos.com/v1", "prometheusrules", true},
    {"NetworkPolicy", "networking.k8s.io/v1", "networkpolicies", true},
    {"Service", "v1", "services", true},
    {"RoleBinding", "rbac.authorization.k8s.io/v1", "rolebindings", true},
    {"Role", "rbac.authorization.k8s.io/v1", "roles", true},
    {"ClusterRoleBinding", "rbac.authorization.k8s.io/v1", "clusterrolebindings", false},
    {"ClusterRole", "rbac.authorization.k8s.io/v1", "clusterroles", false},
    {"ResourceQuota", "v1", "resourcequotas", true},
    {"ConfigMap", "v1", "configmaps", true},
    {"Secret", "v1", "secrets", true},
    {"Lease", "coordination.k8s.io/v1", "leases", true},
    {"ServiceAccount", "v1", "serviceaccounts", true},
    {"ValidatingAdmissionPolicyBinding", "admissionregistration.k8s.io/v1",
     "validatingadmissionpolicybindings", false},
    {"ValidatingAdmissionPolicy", "admissionregistration.k8s.io/v1", "validatingadmissionpolicies", false},
    {"CustomResourceDefinition", "apiextensions.k8s.io/v1", "customresourcedefinitions", false},
    {"Namespace", "v1", "namespaces", false},
};

// What carries no label of ours, or is made at run time.
struct Named {
  const char *kind, *name;
};
constexpr Named kNamed[] = {
    {"ConfigMap", "nodemesh-root-cert"},
    {"Secret", "nodemesh-ca"},
    {"Lease", "nodemesh-controller"},
    {"ValidatingAdmissionPolicyBinding", "workloadslices.nodemesh.dev"},
    {"ValidatingAdmissionPolicy", "workloadslices.nodemesh.dev"},
    {"ValidatingAdmissionPolicyBinding", "pod-marks.nodemesh.dev"},
    {"ValidatingAdmissionPolicy", "pod-marks.nodemesh.dev"},
    {"CustomResourceDefinition", "workloadslices.nodemesh.dev"},
};

std::string collection(const OwnKind& kind, const std::string& ns) {
  std::string_view version = kind.api_version;
  return fmt::format("/{}/{}{}/{}", version.contains('/') ? "apis" : "api", version,
                     kind.namespaced ? "/namespaces/" + ns : "", kind.resource);
}

// Without what others, or the server itself, write at any moment.
nlohmann::json lasting(nlohmann::json object) {
  object.erase("status");
  auto meta = object.find("metadata");
  if (meta == object.end() || !meta->is_object()) return object;
  for (const char* field : {"resourceVersion", "managedFields", "generation"}) meta->erase(field);
  return object;
}

}  // namespace

const OwnKind* find_own_kind(std::string_view kind) {
  for (const auto& one : kKinds) {
    if (kind == one.kind) return &one;
  }
  return nullptr;
}

std::string OwnObject::path() const {
  return collection(*kind, ns) + "/" + name;
}
std::string OwnObject::text() const {
  return fmt::format("{} {}{}{}", kind->kind, ns, ns.empty() ? "" : "/", name);
}
std::string OwnObject::removal() const {
  return fmt::format("kubectl delete {} {}{}{}", kind->resource, name, ns.empty() ? "" : " -n ", ns);
}

Result<OwnObject> own_object(const nlohmann::json& manifest) {
  auto kind = text_of(manifest, "kind"), name = text_of(manifest, "metadata", "name");
  const auto* known = find_own_kind(kind);
  if (known == nullptr || name.empty())
    return fail(fmt::format("the manifest has a {} that meshctl does not know", kind));
  return OwnObject{known, known->namespaced ? ns_of(manifest) : "", name};
}

void Applier::say(std::string_view what, const OwnObject& object) {
  out_ << (dry_run_ ? "would be " : "") << what << ": " << printable(object.text()) << "\n" << std::flush;
}

Result<> Applier::apply(const nlohmann::json& object) {
  auto own = own_object(object);
  if (!own) return std::unexpected(own.error());
  auto before = api_.get(own->path());
  if (!before.ok() && !before.not_found()) return fail(before.error);
  // In a namespace that is not there yet nothing can be tried.
  if (dry_run_ && before.not_found()) return say("created", *own), Result<>{};
  auto path =
      fmt::format("{}?fieldManager={}&force=true{}", own->path(), kManager, dry_run_ ? "&dryRun=All" : "");
  auto after = api_.call(kube::Verb::patch, path, object, "application/apply-patch+yaml");
  if (!after.ok()) return fail(after.error);
  bool same = before.ok() && lasting(before.body) == lasting(after.body);
  say(before.not_found() ? "created" : same ? "unchanged" : "changed", *own);
  return {};
}

Result<> Applier::create_if_absent(const nlohmann::json& object) {
  auto own = own_object(object);
  if (!own) return std::unexpected(own.error());
  auto before = api_.get(own->path());
  if (before.ok()) return {};
  if (!before.not_found()) return fail(before.error);
  say("created", *own);
  if (dry_run_) return {};
  auto reply = api_.call(
      kube::Verb::post, fmt::format("{}?fieldManager={}", collection(*own->kind, own->ns), kManager), object);
  // Somebody else was first, which is as good.
  if (!reply.ok() && reply.status != 409) return fail(reply.error);
  return {};
}

Result<> Applier::remove(const OwnObject& object) {
  auto reply = dry_run_ ? api_.get_metadata(object.path())
                        : api_.call(kube::Verb::remove, object.path() + "?propagationPolicy=Background");
  if (reply.not_found()) return {};
  if (!reply.ok()) return fail(reply.error);
  say("removed", object);
  return {};
}

Result<> Applier::wait_established(const std::string& crd) {
  if (dry_run_) return {};
  auto until = Monotonic::now() + kEstablish;
  while (true) {
    auto reply = api_.get("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/" + crd);
    if (!reply.ok()) return fail(reply.error);
    if (condition_of(reply.body, "Established") == "True") return {};
    if (Monotonic::now() > until) return fail("the API server does not serve CRD " + crd + " after 30 s");
    ::poll(nullptr, 0, kBetweenLooks);
  }
}

Result<std::vector<OwnObject>> find_own(ClusterApi& api, const std::string& ns) {
  std::vector<OwnObject> found;
  for (const auto& kind : kKinds) {
    // The label is no secret, but listing Secrets is a right that nobody should need.
    if (std::string_view(kind.kind) != "Secret" && std::string_view(kind.kind) != "Namespace") {
      auto path = collection(kind, ns) + "?labelSelector=app.kubernetes.io%2Fname%3Dnodemesh";
      auto reply = api.get(path);
      if (!reply.ok() && !reply.not_found()) return fail(reply.error);
      for (const auto& item : items_of(reply.body, "items"))
        found.push_back({&kind, kind.namespaced ? ns : "", text_of(item, "metadata", "name")});
    }
    for (const auto& [named, name] : kNamed) {
      OwnObject object{&kind, kind.namespaced ? ns : "", name};
      if (named != std::string_view(kind.kind) || std::ranges::find(found, object) != found.end()) continue;
      auto reply = api.get_metadata(object.path());
      if (reply.ok()) found.push_back(object);
      if (!reply.ok() && !reply.not_found()) return fail(reply.error);
    }
  }
  return found;
}

}  // namespace nodemesh::ctl

// Who vouches for whom: leader, roots, Secret cacerts, admission policy, rights.
#include <openssl/x509.h>

#include <algorithm>

#include <fmt/format.h>

#include "ctl/check.h"
#include "ctl/check_own.h"
#include "ctl/check_words.h"
#include "ctl/json_at.h"
#include "tls/openssl.h"

namespace nodemesh::ctl {
namespace {

constexpr int64_t kDay = 24 * 3600;
constexpr int64_t kRootWarning = 30 * kDay;

const Json* lease_of(const Cluster& cluster) {
  return cluster.object("leases", cluster.facts.ns, "nodemesh-controller");
}

void no_leader(const Cluster& cluster, Found& found) {
  const auto* lease = lease_of(cluster);
  if (controller(cluster) == nullptr ||
      (lease != nullptr && !text_of(*lease, "spec", "holderIdentity").empty()))
    return;
  found(fmt::format("Lease {}/nodemesh-controller", cluster.facts.ns),
        fmt::format("no replica of the controller leads: {}",
                    signs_itself(cluster) ? "the trust bundle is not kept up to date" : kNobodyLeads),
        fmt::format("kubectl logs -n {} deployment/nodemesh-controller --tail 20", cluster.facts.ns));
}

void leader_gone(const Cluster& cluster, Found& found) {
  const auto* lease = lease_of(cluster);
  if (lease == nullptr || controller(cluster) == nullptr) return;
  auto holder = text_of(*lease, "spec", "holderIdentity");
  if (holder.empty()) return;
  for (const auto* pod : controllers(cluster)) {
    if (text_of(*pod, "metadata", "name") == holder) return;
  }
  found(name_of(*lease), fmt::format("its holder {} is no pod of the controller", holder),
        fmt::format("another leads after 15 s; if not, `kubectl get lease nodemesh-controller -n {} -o yaml`",
                    cluster.facts.ns));
}

struct Root {
  std::string subject;
  int64_t ends = 0;
};

// Of the bundle that agents verify their authority by. An error is a sentence.
Result<std::vector<Root>> roots_of(const Cluster& cluster) {
  const auto* map = cluster.object("configmaps", cluster.facts.ns, bundle_of(cluster));
  if (map == nullptr) return fail("it is absent");
  auto read = tls::parse_certificates(text_of(*map, "data", "root-cert.pem"));
  if (!read) return fail("key root-cert.pem: " + read.error().message);
  if (read->empty()) return fail("key root-cert.pem has no certificate");
  std::vector<Root> roots;
  for (const auto& certificate : *read) {
    tm ends{};
    ASN1_TIME_to_tm(X509_get0_notAfter(certificate.get()), &ends);
    char subject[256] = "";
    X509_NAME_oneline(X509_get_subject_name(certificate.get()), subject, sizeof subject);
    roots.push_back({subject, ::timegm(&ends)});
  }
  return roots;
}

std::string bundle_name(const Cluster& cluster) {
  return fmt::format("ConfigMap {}/{}", cluster.facts.ns, bundle_of(cluster));
}

// Another authority's roots are its own to write: istiod does, into every namespace that it looks after.
std::string to_mend_bundle(const Cluster& cluster) {
  if (signs_itself(cluster))
    return fmt::format("kubectl logs -n {} deployment/nodemesh-controller --tail 20", cluster.facts.ns);
  return fmt::format("`kubectl get configmaps -n {}`; ca.rootConfigMap names the one with the roots of {}",
                     cluster.facts.ns, authority_of(cluster));
}

std::string to_rotate(const Cluster& cluster) {
  if (signs_itself(cluster))
    return fmt::format(
        "kubectl -n {} annotate secret nodemesh-ca nodemesh.dev/rotate-root=\"$(date)\" --overwrite",
        cluster.facts.ns);
  return fmt::format("rotate the root of {}, then look at `meshctl get certs`", authority_of(cluster));
}

void no_bundle(const Cluster& cluster, Found& found) {
  if (signs_itself(cluster) && controller(cluster) == nullptr) return;
  if (auto roots = roots_of(cluster); !roots)
    found(bundle_name(cluster), roots.error().message + ": agents that start cannot verify their authority",
          to_mend_bundle(cluster));
}

void root_expired(const Cluster& cluster, Found& found) {
  for (const auto& root : roots_of(cluster).value_or(std::vector<Root>{})) {
    if (root.ends <= cluster.facts.now)
      found(bundle_name(cluster),
            fmt::format("root {} has expired: what it vouches for is refused", root.subject),
            to_rotate(cluster));
  }
}

void root_expires(const Cluster& cluster, Found& found) {
  for (const auto& root : roots_of(cluster).value_or(std::vector<Root>{})) {
    auto left = root.ends - cluster.facts.now;
    if (left > 0 && left < kRootWarning)
      found(bundle_name(cluster), fmt::format("root {} expires in {} days", root.subject, left / kDay),
            signs_itself(cluster) ? "put a new one into Secret cacerts, or " + to_rotate(cluster)
                                  : to_rotate(cluster));
  }
}

void cacerts_incomplete(const Cluster& cluster, Found& found) {
  if (!cluster.facts.cacerts_exists || !signs_itself(cluster)) return;
  const auto& keys = cluster.facts.cacerts_keys;
  auto lacks = [&](std::initializer_list<const char*> wanted) {
    std::string missing;
    for (const char* key : wanted) {
      if (std::ranges::find(keys, key) == keys.end())
        missing += (missing.empty() ? "" : ", ") + std::string(key);
    }
    return missing;
  };
  auto istio = lacks({"ca-cert.pem", "ca-key.pem", "root-cert.pem", "cert-chain.pem"});
  if (istio.empty() || lacks({"tls.crt", "tls.key", "ca.crt"}).empty()) return;
  found(fmt::format("Secret {}/cacerts", cluster.facts.ns),
        fmt::format("it lacks {}; the controller keeps what it signed with before, or does not start", istio),
        fmt::format("add the keys of docs/certificates.md; `kubectl describe secret cacerts -n {}`",
                    cluster.facts.ns));
}

constexpr const char* kPolicy = "workloadslices.nodemesh.dev";

void no_admission_policy(const Cluster& cluster, Found& found) {
  if (agent_set(cluster) != nullptr && cluster.object("validatingadmissionpolicies", "", kPolicy) == nullptr)
    found(std::string("ValidatingAdmissionPolicy ") + kPolicy,
          "it is absent: any node's agent may speak for the pods of another", "meshctl upgrade");
}

void admission_not_bound(const Cluster& cluster, Found& found) {
  if (agent_set(cluster) == nullptr) return;
  for (const auto& binding : cluster.facts.all("validatingadmissionpolicybindings")) {
    const auto& actions = items_of(binding, "spec", "validationActions");
    if (text_of(binding, "spec", "policyName") == kPolicy &&
        std::ranges::find(actions, Json("Deny")) != actions.end())
      return;
  }
  found(std::string("ValidatingAdmissionPolicyBinding ") + kPolicy,
        "no binding makes the admission policy deny: any node's agent may speak for the pods of another",
        "meshctl upgrade");
}

void admission_of_another_namespace(const Cluster& cluster, Found& found) {
  const auto* policy = cluster.object("validatingadmissionpolicies", "", kPolicy);
  if (policy == nullptr) return;
  bool named = std::ranges::any_of(items_of(*policy, "spec", "variables"), [&](const Json& variable) {
    return text_of(variable, "expression")
        .contains(fmt::format("serviceaccount:{}:nodemesh-agent", cluster.facts.ns));
  });
  if (!named)
    found(name_of(*policy),
          fmt::format("it does not name the service account of the agents in {}, so their slices are refused",
                      cluster.facts.ns),
          fmt::format("meshctl upgrade -n {}", cluster.facts.ns));
}

void agents_without_rights(const Cluster& cluster, Found& found) {
  if (agent_set(cluster) == nullptr) return;
  const auto* binding = cluster.object("clusterrolebindings", "", "nodemesh-agent");
  bool bound =
      binding != nullptr && std::ranges::any_of(items_of(*binding, "subjects"), [&](const Json& subject) {
        return text_of(subject, "name") == "nodemesh-agent" &&
               text_of(subject, "namespace") == cluster.facts.ns;
      });
  if (!bound)
    found("ClusterRoleBinding nodemesh-agent",
          fmt::format("it does not give the agents in {} their rights: they hear no news of the cluster",
                      cluster.facts.ns),
          fmt::format("meshctl upgrade -n {}", cluster.facts.ns));
}

using enum Severity;
constexpr auto kInstalled = When::installed;
const Check kChecks[] = {
    {"NM1214",
     warning,
     kInstalled,
     "No controller leads",
     "Nobody keeps the trust bundle up to date, writes statuses, or speaks for nodes without an agent.",
     {"daemonsets", "deployments", "leases"},
     no_leader},
    {"NM1215",
     warning,
     kInstalled,
     "The Lease's holder does not exist",
     "For 15 s after a crash that is so; longer means that nobody takes it over.",
     {"deployments", "leases", "pods"},
     leader_gone},
    {"NM1216",
     error,
     kInstalled,
     "There is no trust bundle",
     "Agents mount it to verify the authority that they ask for certificates.",
     {"daemonsets", "deployments", "configmaps"},
     no_bundle},
    {"NM1217",
     error,
     kInstalled,
     "A root has expired",
     "Rotate it. An old root that has been replaced leaves the bundle by itself.",
     {"daemonsets", "configmaps"},
     root_expired},
    {"NM1218",
     warning,
     kInstalled,
     "A root expires within 30 days",
     "A rotation takes two lifetimes of a certificate (docs/certificates.md).",
     {"daemonsets", "configmaps"},
     root_expires},
    {"NM1219",
     error,
     kInstalled,
     "Secret cacerts lacks a key",
     "Only the names of its keys are read. docs/certificates.md has both forms.",
     {"daemonsets", "cacerts"},
     cacerts_incomplete},
    {"NM1220",
     error,
     kInstalled,
     "The admission policy is absent",
     "It holds each agent to the slices of its own node.",
     {"daemonsets", "validatingadmissionpolicies"},
     no_admission_policy},
    {"NM1221",
     error,
     kInstalled,
     "The admission policy does not deny",
     "Its binding is absent or only warns.",
     {"daemonsets", "validatingadmissionpolicybindings"},
     admission_not_bound},
    {"NM1222",
     error,
     kInstalled,
     "The admission policy knows other agents",
     "It names the accounts of another namespace than the installed agents'.",
     {"validatingadmissionpolicies"},
     admission_of_another_namespace},
    {"NM1223",
     error,
     kInstalled,
     "Agents have no rights",
     "Their ClusterRoleBinding is absent or for another namespace.",
     {"daemonsets", "clusterrolebindings"},
     agents_without_rights},
};

}  // namespace

std::span<const Check> trust_checks() {
  return kChecks;
}

}  // namespace nodemesh::ctl

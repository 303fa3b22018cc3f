// Pods to workloads: enrolment, identity, names for telemetry. Pure; control thread.
#pragma once

#include "kube/store.h"
#include "model/workload.h"
#include "translate/claims.h"
#include "translate/core.h"
#include "translate/translate.h"

namespace nodemesh::translate {

inline constexpr const char* kDataplaneMode = "istio.io/dataplane-mode";  // label of Pods and Namespaces
inline constexpr const char* kSidecarStatus = "sidecar.istio.io/status";  // annotation of Pods

// Whether a Pod is to be in the mesh, and what keeps it out although a label says so.
enum class Enrolment : uint8_t {
  unwanted,
  enrolled,
  host_network,  // shares the node's network
  sidecar,       // has one of Istio's
  runtime,  // gVisor keeps the pod's network to itself, Kata in a virtual machine: no sockets of the kernel
};
struct EnrolmentFacts {
  std::string_view pod_mode, namespace_mode;  // of label kDataplaneMode
  bool host_network = false, sidecar = false;
  std::string_view handler;  // of the RuntimeClass; empty: the node's default
};
Enrolment judge_enrolment(const EnrolmentFacts& facts);
// Of a Pod's runtimeClassName, which stands for itself where there is no such RuntimeClass. Null: the node's
// default. Valid as long as store and name.
const std::string* runtime_handler(const kube::Store& store, const std::string& runtime_class);

// Everything but the policy. Nothing when the Pod is finished or refused; what is wrong is in `reports`.
std::optional<model::Workload> make_workload(const kube::Store& store, const kube::Entry& pod,
                                             const std::string& trust_domain, Claims& claims,
                                             Reports& reports);

// Type and name of the workload that owns the Pod. A ReplicaSet with the template hash in its name is a
// Deployment's; a Job whose name ends in a minute number is a CronJob's.
void name_owner(const kube::Object& pod, model::Workload& workload);
// Application, version and canonical names, from `labels` and the names that are already there.
void name_from_labels(model::Workload& workload);
// Region and zone, of its Node.
void place(const kube::Store& store, model::Workload& workload);

}  // namespace nodemesh::translate

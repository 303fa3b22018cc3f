// Pods to workloads: enrolment, identity, names for telemetry. Pure; control thread.
#pragma once

#include "kube/store.h"
#include "model/workload.h"
#include "translate/claims.h"
#include "translate/core.h"
#include "translate/translate.h"

namespace nodemesh::translate {

// Everything but the policy. Nothing when the Pod is finished or refused; what is wrong is in `reports`.
std::optional<model::Workload> make_workload(const kube::Store& store, const kube::Entry& pod,
                                             const std::string& trust_domain, Claims& claims,
                                             Reports& reports);

// Application, version and canonical names, from `labels` and the names that are already there.
void name_from_labels(model::Workload& workload);
// Region and zone, of its Node.
void place(const kube::Store& store, model::Workload& workload);

}  // namespace nodemesh::translate

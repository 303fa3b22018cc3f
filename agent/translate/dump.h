// A snapshot and statuses as JSON: for the admin port, meshctl and the golden tests. Values that are empty or
// default are left out. Allocates; never on the data path.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <vector>

#include "kube/problem.h"
#include "model/authorize.h"
#include "model/snapshot.h"

namespace nodemesh::translate {

nlohmann::json to_json(const model::Origin& origin);
nlohmann::json to_json(const model::WorkloadPolicy& policy);
nlohmann::json to_json(const model::Workload& workload);
nlohmann::json to_json(const model::Service& service);
nlohmann::json to_json(
    const model::Snapshot& snapshot);  // without the generation's number: equal content, equal JSON
nlohmann::json to_json(const model::Verdict& verdict);
nlohmann::json to_json(const std::vector<kube::Status>& statuses);

}  // namespace nodemesh::translate

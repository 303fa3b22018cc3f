// YAML as JSON values, for what is sent to an API server or compared with its objects. Pure.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

#include "base/reason.h"
#include "kube/node.h"

namespace nodemesh::ctl {

nlohmann::json json_of(const kube::Node& node);
// Every document that is not empty. The error names line and fix.
Result<std::vector<nlohmann::json>> json_of_yaml(std::string_view text, const std::string& file);

}  // namespace nodemesh::ctl

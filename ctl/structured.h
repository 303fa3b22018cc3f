// JSON and YAML output. Pure.
#pragma once

#include <string>

#include <nlohmann/json_fwd.hpp>

namespace nodemesh::ctl {

std::string to_json_text(const nlohmann::json& value);
std::string to_yaml_text(const nlohmann::json& value);

}  // namespace nodemesh::ctl

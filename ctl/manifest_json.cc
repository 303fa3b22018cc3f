#include "ctl/manifest_json.h"

#include "kube/yaml.h"

namespace nodemesh::ctl {

nlohmann::json json_of(const kube::Node& node) {
  using Type = kube::Node::Type;
  switch (node.type) {
    case Type::null:
      return nullptr;
    case Type::boolean:
      return node.text == "true" || node.text == "True" || node.text == "TRUE";
    case Type::integer:
    case Type::decimal: {
      // Octal and such are for nobody's manifests; what JSON does not know as a number stays text.
      auto value = nlohmann::json::parse(node.text, nullptr, false);
      return value.is_number() ? value : nlohmann::json(node.text);
    }
    case Type::string:
      return node.text;
    case Type::list: {
      auto out = nlohmann::json::array();
      for (const auto& child : node.children) out.push_back(json_of(child));
      return out;
    }
    case Type::map: {
      auto out = nlohmann::json::object();
      for (const auto& child : node.children) out[child.key] = json_of(child);
      return out;
    }
  }
  return nullptr;
}

Result<std::vector<nlohmann::json>> json_of_yaml(std::string_view text, const std::string& file) {
  auto documents = kube::parse_yaml(text, file);
  if (!documents.problems.empty()) return fail(documents.problems.front().to_string());
  std::vector<nlohmann::json> out;
  for (const auto& root : documents.roots) {
    if (root.type != kube::Node::Type::null) out.push_back(json_of(root));
  }
  return out;
}

}  // namespace nodemesh::ctl

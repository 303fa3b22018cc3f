#include "kube/resources.h"

#include <algorithm>
#include <cctype>

namespace nodemesh::kube {

std::string Resource::api_version(size_t version) const {
  return group.empty() ? versions[version] : group + "/" + versions[version];
}

std::string Resource::path(std::string_view ns, size_t version) const {
  std::string out = (group.empty() ? "/api/" : "/apis/") + api_version(version);
  if (!ns.empty()) out.append("/namespaces/").append(ns);
  return out + "/" + plural;
}

std::string Resource::object_path(std::string_view ns, std::string_view name, size_t version) const {
  return path(ns, version).append("/").append(name);
}

std::string Resource::full_name() const {
  return group.empty() ? plural : plural + "." + group;
}

Resource resource_of(const Kind& kind) {
  return {std::string(kind.group),
          {kind.versions.begin(), kind.versions.end()},
          plural_of(kind.name),
          std::string(kind.name)};
}

std::string plural_of(std::string_view kind) {
  std::string out;
  for (unsigned char c : kind) out += static_cast<char>(std::tolower(c));
  auto ends_with = [&](auto... ends) { return (out.ends_with(ends) || ...); };
  if (ends_with("endpoints")) return out;
  if (out.ends_with('y') && !ends_with("ay", "ey", "oy", "uy")) return out.substr(0, out.size() - 1) + "ies";
  return out + (ends_with("s", "x", "ch", "sh") ? "es" : "s");
}

bool is_builtin_group(std::string_view group) {
  static constexpr std::string_view kGroups[] = {
      "",
      "admissionregistration.k8s.io",
      "apiextensions.k8s.io",
      "apps",
      "authentication.k8s.io",
      "authorization.k8s.io",
      "batch",
      "coordination.k8s.io",
      "discovery.k8s.io",
      "events.k8s.io",
      "networking.k8s.io",
      "policy",
      "rbac.authorization.k8s.io",
  };
  return std::ranges::find(kGroups, group) != std::end(kGroups);
}

}  // namespace nodemesh::kube

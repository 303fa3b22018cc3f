// The chart's profiles, as they are built into meshctl: each rendered for release nodemesh in namespace
// nodemesh-system (packaging/manifests, which the chart tier compares with Helm's own rendering), and its
// values, for Helm. Constants.
#pragma once

#include <span>
#include <string_view>

namespace nodemesh::ctl {

struct Profile {
  std::string_view name;      // "default", "strict", …
  std::string_view manifest;  // YAML, byte for byte what `helm template` says
  std::string_view values;    // YAML; empty: the chart's own
};
std::span<const Profile> profiles();
const Profile* find_profile(std::string_view name);  // null: there is none

// Of the rendered manifests; another namespace needs Helm.
inline constexpr std::string_view kManifestNamespace = "nodemesh-system";
inline constexpr std::string_view kRelease = "nodemesh";

}  // namespace nodemesh::ctl

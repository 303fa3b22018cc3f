#include "ctl/manifests.h"

namespace nodemesh::ctl {

const Profile* find_profile(std::string_view name) {
  for (const auto& profile : profiles()) {
    if (profile.name == name) return &profile;
  }
  return nullptr;
}

}  // namespace nodemesh::ctl

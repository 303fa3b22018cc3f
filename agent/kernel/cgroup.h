// Questions about cgroup2 directories: identity, descent. Reads the file system only; any thread.
#pragma once

#include <cstdint>
#include <string>

#include "base/reason.h"

namespace nodemesh::kernel {

// True if `ancestor` is `descendant` or a directory above it.
Result<bool> cgroup_contains(const std::string& ancestor, const std::string& descendant);

// The refusals that concern both options together: kubelet's cgroup may not contain the pods'.
Result<> check_cgroups(const std::string& kubepods, const std::string& kubelet);

}  // namespace nodemesh::kernel

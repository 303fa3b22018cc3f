// Questions about cgroup2 directories: identity, depth, descent. Reads the file system only; any thread.
#pragma once

#include <cstdint>
#include <string>

#include "base/reason.h"

namespace nodemesh::kernel {

// Depth of `directory` below the root of the cgroup2 hierarchy (the root is 0). Fails if the root is not
// visible from here, as in a container that has only its own cgroup namespace's view.
Result<uint32_t> cgroup_level(const std::string& directory);

// True if `ancestor` is `descendant` or a directory above it.
Result<bool> cgroup_contains(const std::string& ancestor, const std::string& descendant);

// The refusals that concern both options together: kubelet's cgroup may not contain the pods'.
Result<> check_cgroups(const std::string& kubepods, const std::string& kubelet);

}  // namespace nodemesh::kernel

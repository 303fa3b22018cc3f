// Comparing what the kernel runs with what was attached. Reads only; the warden's thread.
#pragma once

#include <cstdint>
#include <vector>

#include "kernel/capture.h"

namespace nodemesh::kernel {

struct Hook;
class Link;

// Appends what is to be said of one cgroup hook: ours gone or replaced (problem), others beside or above it
// (information).
void audit_hook(const Hook& hook, const Link& link, int cgroup_fd, std::vector<Finding>& findings);
void audit_steering(uint64_t netns_cookie, const Link& link, std::vector<Finding>& findings);

}  // namespace nodemesh::kernel

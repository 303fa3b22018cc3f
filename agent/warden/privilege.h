// Capabilities by the raw system calls. Acts on the calling thread: call it before there are others.
#pragma once

#include <initializer_list>
#include <string>
#include <vector>

#include "base/reason.h"

namespace nodemesh::warden {

// Drops every capability but `keep` from all sets, for good (bounding and ambient sets included), and sets
// no_new_privs. A capability that is not held cannot be kept and is no error; see missing_capabilities.
Result<> keep_capabilities(std::initializer_list<int> keep);
// Names ("CAP_BPF") of those of `wanted` that are not effective now.
std::vector<std::string> missing_capabilities(std::initializer_list<int> wanted);

}  // namespace nodemesh::warden

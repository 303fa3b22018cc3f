// The compiled BPF objects, loaded: each function verifies one object's programs against the maps pinned in a
// directory (making and pinning those that are not there) and hands out program descriptors. Warden's thread.
#pragma once

#include <array>
#include <cstdint>
#include <string>

#include "base/fd.h"
#include "base/reason.h"

namespace nodemesh::kernel {

// One attachment point of the node-wide programs.
struct Hook {
  const char* name;      // of the program's function and of the link's pin
  uint32_t attach_type;  // enum bpf_attach_type
  bool kubelet;          // attached at kubelet's cgroup instead of the pods'
};
inline constexpr size_t kHookCount = 8;
extern const std::array<Hook, kHookCount> kHooks;

// Descriptors in the order of kHooks. `kubepods` is the id of the pods' cgroup.
using Programs = std::array<Fd, kHookCount>;
Result<Programs> load_programs(const std::string& maps_dir, uint64_t kubepods);

// The inbound program of one pod.
Result<Fd> load_steer(const std::string& maps_dir, uint64_t netns_cookie);

}  // namespace nodemesh::kernel

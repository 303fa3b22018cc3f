// Where pins lie: <pin_dir>/v<NM_ABI_VERSION>/{maps,links,steer}. Names and directories only; any thread.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/reason.h"

namespace nodemesh::kernel {

struct Pins {
  std::string root;  // of this version

  static Pins of(const std::string& pin_dir);
  std::string maps() const { return root + "/maps"; }
  std::string links() const { return root + "/links"; }
  std::string steer() const { return root + "/steer"; }
  std::string link(const char* hook) const { return links() + "/" + hook; }
  std::string steer(uint64_t netns_cookie) const;

  // Makes the directories; `pin_dir` must be in a BPF file system.
  Result<> make(const std::string& pin_dir) const;
  // Those of agents of another NM_ABI_VERSION that are in `pin_dir`.
  static std::vector<Pins> of_other_versions(const std::string& pin_dir);
  // Pins the other version's map here too, before programs are loaded; it must have kept its shape.
  Result<> share_map(const Pins& other, const char* name) const;
  // Moves the other version's links here, as if this version had attached them; what they run stays in force
  // until its program is swapped. The other's maps go.
  Result<> take_over(const Pins& other) const;
  // Cookies of the namespaces whose steering is pinned.
  std::vector<uint64_t> steered() const;
  // Detaches every pinned link and removes all pins and directories of this version.
  Result<> remove() const;
};

// True if `path`, or the nearest directory above it that exists, is in a BPF file system.
bool in_bpffs(const std::string& path);

}  // namespace nodemesh::kernel

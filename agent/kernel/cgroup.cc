#include "kernel/cgroup.h"

#include <fmt/format.h>
#include <linux/magic.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include <cerrno>
#include <cstring>

#include "kernel/capture.h"

namespace nodemesh::kernel {
namespace {

constexpr uint64_t kRootCgroupId = 1;  // kernfs numbers the root of the hierarchy 1, whatever namespace looks

Result<struct stat> stat_cgroup(const std::string& directory) {
  struct statfs fs{};
  if (::statfs(directory.c_str(), &fs) != 0)
    return fail(fmt::format("cgroup {}: {}; name an existing directory of the cgroup2 file system", directory,
                            std::strerror(errno)));
  if (fs.f_type != CGROUP2_SUPER_MAGIC)
    return fail(
        fmt::format("cgroup {}: not in a cgroup2 file system; boot with the unified hierarchy "
                    "(systemd.unified_cgroup_hierarchy=1) or name a directory below the cgroup2 mount",
                    directory));
  struct stat st{};
  if (::stat(directory.c_str(), &st) != 0) return fail_errno(fmt::format("cgroup {}: stat", directory));
  return st;
}

// Calls `visit(inode)` for the directory and each one above it until the root of the hierarchy; stops early
// if it returns true. Returns the number of steps taken.
template <class Visit>
Result<uint32_t> walk_up(std::string directory, Visit visit) {
  auto here = stat_cgroup(directory);
  if (!here) return std::unexpected(here.error());
  const dev_t device = here->st_dev;
  for (uint32_t steps = 0;; steps++) {
    if (visit(here->st_ino) || here->st_ino == kRootCgroupId) return steps;
    directory += "/..";
    struct stat above{};
    if (::stat(directory.c_str(), &above) != 0 || above.st_dev != device || above.st_ino == here->st_ino)
      return fail(fmt::format(
          "cgroup {}: the root of the cgroup2 hierarchy is not visible above it; mount the host's "
          "cgroup2 file system, not the container's own view of it",
          directory.substr(0, directory.find("/.."))));
    here = above;
  }
}

}  // namespace

Result<uint64_t> cgroup_id(const std::string& directory) {
  auto st = stat_cgroup(directory);
  if (!st) return std::unexpected(st.error());
  return st->st_ino;
}

Result<uint32_t> cgroup_level(const std::string& directory) {
  return walk_up(directory, [](uint64_t) { return false; });
}

Result<bool> cgroup_contains(const std::string& ancestor, const std::string& descendant) {
  auto id = cgroup_id(ancestor);
  if (!id) return std::unexpected(id.error());
  bool found = false;
  auto walked = walk_up(descendant, [&](uint64_t inode) { return found = inode == *id; });
  if (!walked) return std::unexpected(walked.error());
  return found;
}

Result<> check_cgroups(const std::string& kubepods, const std::string& kubelet) {
  auto level = cgroup_level(kubepods);
  if (!level) return std::unexpected(level.error());
  if (kubelet.empty()) return {};
  auto contains = cgroup_contains(kubelet, kubepods);
  if (!contains) return std::unexpected(contains.error());
  if (*contains)
    return fail(fmt::format(
        "kubelet cgroup {}: it contains the pods' cgroup {}, so every pod would pass for kubelet; "
        "start kubelet in a cgroup of its own (for example system.slice/kubelet.service) and name that",
        kubelet, kubepods));
  return {};
}

}  // namespace nodemesh::kernel

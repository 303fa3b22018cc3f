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

}  // namespace

Result<uint64_t> cgroup_id(const std::string& directory) {
  auto st = stat_cgroup(directory);
  if (!st) return std::unexpected(st.error());
  return st->st_ino;
}

// Up to the root, or as far as a cgroup namespace lets us see: what is above that cannot have been named.
Result<bool> cgroup_contains(const std::string& ancestor, const std::string& descendant) {
  auto wanted = cgroup_id(ancestor);
  if (!wanted) return std::unexpected(wanted.error());
  auto here = stat_cgroup(descendant);
  if (!here) return std::unexpected(here.error());
  std::string path = descendant;
  for (struct stat at = *here;;) {
    if (at.st_ino == *wanted) return true;
    struct stat above{};
    path += "/..";
    if (::stat(path.c_str(), &above) != 0 || above.st_dev != at.st_dev || above.st_ino == at.st_ino)
      return false;
    at = above;
  }
}

Result<> check_cgroups(const std::string& kubepods, const std::string& kubelet) {
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

#include "warden/privilege.h"

#include <linux/capability.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <utility>

namespace nodemesh::warden {
namespace {

struct Sets {
  __user_cap_header_struct header{.version = _LINUX_CAPABILITY_VERSION_3, .pid = 0};
  std::array<__user_cap_data_struct, 2> data{};
};

constexpr std::array<std::pair<int, const char*>, 5> kNames{{{CAP_BPF, "CAP_BPF"},
                                                             {CAP_NET_ADMIN, "CAP_NET_ADMIN"},
                                                             {CAP_SYS_ADMIN, "CAP_SYS_ADMIN"},
                                                             {CAP_PERFMON, "CAP_PERFMON"},
                                                             {CAP_SYS_PTRACE, "CAP_SYS_PTRACE"}}};

}  // namespace

Result<> keep_capabilities(std::initializer_list<int> keep) {
  // The bounding set first: shrinking it needs CAP_SETPCAP, which goes too. EINVAL ends the kernel's list.
  for (int capability = 0; ::prctl(PR_CAPBSET_READ, capability) >= 0; ++capability) {
    if (std::ranges::find(keep, capability) != keep.end()) continue;
    if (::prctl(PR_CAPBSET_DROP, capability) < 0 && errno != EPERM)
      return fail_errno("prctl(PR_CAPBSET_DROP)");
  }
  ::prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0);
  Sets sets;
  if (::syscall(SYS_capget, &sets.header, sets.data.data()) < 0) return fail_errno("capget");
  std::array<uint32_t, 2> kept{};
  for (int capability : keep) kept[CAP_TO_INDEX(capability)] |= CAP_TO_MASK(capability);
  for (size_t i = 0; i < sets.data.size(); ++i) {
    sets.data[i].permitted &= kept[i];
    sets.data[i].effective = sets.data[i].permitted;
    sets.data[i].inheritable = 0;
  }
  if (::syscall(SYS_capset, &sets.header, sets.data.data()) < 0) return fail_errno("capset");
  if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0) return fail_errno("prctl(PR_SET_NO_NEW_PRIVS)");
  return {};
}

std::vector<std::string> missing_capabilities(std::initializer_list<int> wanted) {
  Sets sets;
  std::vector<std::string> out;
  if (::syscall(SYS_capget, &sets.header, sets.data.data()) < 0) return out;
  for (int capability : wanted) {
    if (sets.data[CAP_TO_INDEX(capability)].effective & CAP_TO_MASK(capability)) continue;
    auto named = std::ranges::find(kNames, capability, &std::pair<int, const char*>::first);
    out.emplace_back(named != kNames.end() ? named->second : "CAP_" + std::to_string(capability));
  }
  return out;
}

}  // namespace nodemesh::warden

// Taking rights away from the calling process, for good. Call it at the start, while there is one thread.
// Every function either succeeds or names what the kernel refused; nothing is half done that would leave more
// rights than before.
#pragma once

#include <sys/types.h>

#include "base/reason.h"

namespace nodemesh::app {

inline constexpr uid_t kProxyUser = 65532;  // "nonroot" of common base images

// Root becomes `uid`:`gid` without supplementary groups; whoever calls it is left without any capability, in
// any set, and with no_new_privs. A process that is not root keeps its ids, whatever was asked. The
// parent-death signal survives.
Result<> drop_privileges(uid_t uid, gid_t gid);

struct SyscallRules {
  bool allow_exec = false;  // a supervisor starts programs, a worker never does
};
// Installs the seccomp filter on all threads: what a proxy never needs (bpf, ptrace, mount, namespaces,
// modules, kexec, keyrings, perf, other processes' memory, io_uring, userfaultfd …) fails with EPERM, socket
// families other than UNIX, INET, INET6 and NETLINK with EAFNOSUPPORT, a system call of another architecture
// kills the process.
Result<> restrict_syscalls(const SyscallRules& rules);

// Raises RLIMIT_NOFILE to its hard limit and returns that.
Result<uint64_t> raise_descriptor_limit();
// No core dumps, no ptrace by the same user, no reading of /proc/self by it: memory holds private keys.
Result<> hide_memory();

}  // namespace nodemesh::app

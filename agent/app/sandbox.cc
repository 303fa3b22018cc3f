#include "app/sandbox.h"

#include <grp.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstddef>
#include <vector>

#include "warden/privilege.h"

namespace nodemesh::app {
namespace {

#if defined(__x86_64__)
constexpr uint32_t kArchitecture = AUDIT_ARCH_X86_64;
#elif defined(__aarch64__)
constexpr uint32_t kArchitecture = AUDIT_ARCH_AARCH64;
#else
#error "the system call filter knows x86-64 and arm64"
#endif

// System calls with no use in a proxy and a history of use against kernels.
constexpr int kDenied[] = {
    SYS_bpf,
    SYS_ptrace,
    SYS_perf_event_open,
    SYS_userfaultfd,
    SYS_io_uring_setup,
    SYS_io_uring_enter,
    SYS_io_uring_register,
    SYS_process_vm_readv,
    SYS_process_vm_writev,
    SYS_pidfd_getfd,
    SYS_kcmp,
    // namespaces and mounts
    SYS_setns,
    SYS_unshare,
    SYS_mount,
    SYS_umount2,
    SYS_pivot_root,
    SYS_chroot,
    SYS_move_mount,
    SYS_open_tree,
    SYS_fsopen,
    SYS_fsconfig,
    SYS_fsmount,
    SYS_fspick,
    SYS_mount_setattr,
    SYS_open_by_handle_at,
    SYS_name_to_handle_at,
    SYS_quotactl,
    SYS_swapon,
    SYS_swapoff,
    // the kernel itself
    SYS_init_module,
    SYS_finit_module,
    SYS_delete_module,
    SYS_kexec_load,
#ifdef SYS_kexec_file_load
    SYS_kexec_file_load,
#endif
    SYS_reboot,
    SYS_acct,
    SYS_syslog,
    SYS_settimeofday,
    SYS_clock_settime,
    SYS_adjtimex,
    SYS_clock_adjtime,
    SYS_sethostname,
    SYS_setdomainname,
    SYS_personality,
    SYS_add_key,
    SYS_request_key,
    SYS_keyctl,
    SYS_fanotify_init,
    SYS_mknodat,
    SYS_vhangup,
    SYS_lookup_dcookie,
    SYS_nfsservctl,
#ifdef __x86_64__
    SYS_mknod,
    SYS_iopl,
    SYS_ioperm,
    SYS_modify_ldt,
    SYS_uselib,
    SYS_ustat,
    SYS_sysfs,
    SYS__sysctl,
#endif
};
constexpr uint32_t kNewNamespaces =
    CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWCGROUP;
constexpr int kFamilies[] = {AF_UNIX, AF_INET, AF_INET6, AF_NETLINK};

constexpr uint32_t kAllow = SECCOMP_RET_ALLOW;
constexpr uint32_t deny(int error) {
  return SECCOMP_RET_ERRNO | static_cast<uint32_t>(error);
}

using Program = std::vector<sock_filter>;

void load(Program& program, size_t offset) {
  program.push_back(BPF_STMT(BPF_LD | BPF_W | BPF_ABS, static_cast<uint32_t>(offset)));
}
void leave(Program& program, uint32_t verdict) {
  program.push_back(BPF_STMT(BPF_RET | BPF_K, verdict));
}
// Falls through when the accumulator is not `value`, else leaves with `verdict`.
void leave_if(Program& program, uint32_t value, uint32_t verdict) {
  program.push_back(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, value, 0, 1));
  leave(program, verdict);
}

size_t low_half(size_t argument) {
  return offsetof(seccomp_data, args) + argument * sizeof(uint64_t);
}

void check_architecture(Program& program) {
  load(program, offsetof(seccomp_data, arch));
  program.push_back(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, kArchitecture, 1, 0));
  leave(program, SECCOMP_RET_KILL_PROCESS);
  load(program, offsetof(seccomp_data, nr));
#ifdef __x86_64__
  // The x32 numbers reach the same kernel functions by a second name.
  program.push_back(BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, 0x40000000, 0, 1));
  leave(program, SECCOMP_RET_KILL_PROCESS);
#endif
}

// clone(2) for threads stays; with a new-namespace flag it is unshare(2) by another name. clone3 hides its
// flags behind a pointer: ENOSYS makes libc use clone.
void check_clone(Program& program) {
  leave_if(program, SYS_clone3, deny(ENOSYS));
  program.push_back(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_clone, 0, 4));
  load(program, low_half(0));
  program.push_back(BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, kNewNamespaces, 0, 1));
  leave(program, deny(EPERM));
  leave(program, kAllow);
}

void check_family(Program& program) {
  constexpr size_t count = std::size(kFamilies);
  Program body;
  load(body, low_half(0));
  for (int family : kFamilies) leave_if(body, static_cast<uint32_t>(family), kAllow);
  leave(body, deny(EAFNOSUPPORT));
  static_assert(count * 2 + 2 < 255);
  program.push_back(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_socket, 0, static_cast<uint8_t>(body.size())));
  program.insert(program.end(), body.begin(), body.end());
}

Program filter_for(const SyscallRules& rules) {
  Program program;
  check_architecture(program);
  for (int number : kDenied) leave_if(program, static_cast<uint32_t>(number), deny(EPERM));
  if (!rules.allow_exec) {
    leave_if(program, SYS_execve, deny(EPERM));
    leave_if(program, SYS_execveat, deny(EPERM));
  }
  check_clone(program);
  check_family(program);
  leave(program, kAllow);
  return program;
}

Result<> become_user(uid_t uid, gid_t gid) {
  if (::geteuid() != 0) return {};
  if (::setgroups(0, nullptr) < 0) return fail_errno("giving up supplementary groups");
  if (::setresgid(gid, gid, gid) < 0) return fail_errno("becoming group " + std::to_string(gid));
  if (::setresuid(uid, uid, uid) < 0) return fail_errno("becoming user " + std::to_string(uid));
  return {};
}

}  // namespace

Result<> drop_privileges(uid_t uid, gid_t gid) {
  int death_signal = 0;
  ::prctl(PR_GET_PDEATHSIG, &death_signal);
  // The bounding set can only shrink while CAP_SETPCAP is held, ids only change while CAP_SETUID is: hence
  // two steps.
  for (int capability = 0; ::prctl(PR_CAPBSET_READ, capability) >= 0; ++capability) {
    if (::prctl(PR_CAPBSET_DROP, capability) < 0 && errno != EPERM)
      return fail_errno("prctl(PR_CAPBSET_DROP)");
  }
  if (auto ok = become_user(uid, gid); !ok) return ok;
  if (auto ok = warden::keep_capabilities({}); !ok) return ok;
  // A change of ids clears it.
  if (death_signal != 0) ::prctl(PR_SET_PDEATHSIG, death_signal);
  return {};
}

Result<> restrict_syscalls(const SyscallRules& rules) {
  Program program = filter_for(rules);
  sock_fprog native{.len = static_cast<unsigned short>(program.size()), .filter = program.data()};
  if (::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0) return fail_errno("prctl(PR_SET_NO_NEW_PRIVS)");
  // SPEC_ALLOW: before 5.16 a filter otherwise switches off speculative store bypass, which costs every
  // system call.
  unsigned flags = SECCOMP_FILTER_FLAG_TSYNC | SECCOMP_FILTER_FLAG_SPEC_ALLOW;
  if (::syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &native) != 0) {
    return fail_errno("installing the system call filter (CONFIG_SECCOMP_FILTER is needed)");
  }
  return {};
}

Result<uint64_t> raise_descriptor_limit() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) < 0) return fail_errno("getrlimit(RLIMIT_NOFILE)");
  limit.rlim_cur = limit.rlim_max;
  if (::setrlimit(RLIMIT_NOFILE, &limit) < 0) return fail_errno("setrlimit(RLIMIT_NOFILE)");
  return limit.rlim_max;
}

Result<> hide_memory() {
  if (::prctl(PR_SET_DUMPABLE, 0) < 0) return fail_errno("prctl(PR_SET_DUMPABLE)");
  rlimit none{};
  if (::setrlimit(RLIMIT_CORE, &none) < 0) return fail_errno("setrlimit(RLIMIT_CORE)");
  return {};
}

}  // namespace nodemesh::app

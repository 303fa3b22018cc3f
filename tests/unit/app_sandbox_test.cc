#include <doctest/doctest.h>

#include <fcntl.h>
#include <linux/capability.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <fstream>
#include <string>
#include <thread>

#include "app/sandbox.h"
#include "warden/privilege.h"

using namespace nodemesh;
using namespace nodemesh::app;

namespace {

// Runs `body` in a child, since what it does cannot be undone. Its exit code, or 128 + signal.
template <class Body>
int in_child(Body body) {
  pid_t child = ::fork();
  if (child == 0) ::_exit(body());
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

template <class... Arguments>
int error_of(long number, Arguments... arguments) {
  errno = 0;
  return ::syscall(number, arguments...) < 0 ? errno : 0;
}

// 0 when every check held, else the number of the line after the first that did not.
#define HOLD(condition) \
  if (!(condition)) return __LINE__ % 100 + 1

std::string status_line(const std::string& name) {
  std::ifstream file("/proc/self/status");
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with(name + ":")) return line.substr(line.find_first_not_of(" \t", name.size() + 1));
  }
  return "";
}

}  // namespace

TEST_CASE("the filter refuses what a proxy never needs, with EPERM") {
  CHECK(in_child([] {
          HOLD(restrict_syscalls({}));
          HOLD(error_of(SYS_bpf, 0, nullptr, 0) == EPERM);
          HOLD(error_of(SYS_ptrace, 0, 0, nullptr, nullptr) == EPERM);
          HOLD(error_of(SYS_mount, nullptr, nullptr, nullptr, 0, nullptr) == EPERM);
          HOLD(error_of(SYS_setns, -1, 0) == EPERM);
          HOLD(error_of(SYS_unshare, 0) == EPERM);
          HOLD(error_of(SYS_finit_module, -1, "", 0) == EPERM);
          HOLD(error_of(SYS_kexec_load, 0, 0, nullptr, 0) == EPERM);
          HOLD(error_of(SYS_perf_event_open, nullptr, 0, 0, 0, 0) == EPERM);
          HOLD(error_of(SYS_keyctl, 0, 0, 0, 0, 0) == EPERM);
          HOLD(error_of(SYS_process_vm_readv, 0, nullptr, 0, nullptr, 0, 0) == EPERM);
          HOLD(error_of(SYS_open_by_handle_at, -1, nullptr, 0) == EPERM);
          HOLD(error_of(SYS_userfaultfd, 0) == EPERM);
          HOLD(error_of(SYS_io_uring_setup, 1, nullptr) == EPERM);
          HOLD(error_of(SYS_pidfd_getfd, -1, 0, 0) == EPERM);
          HOLD(error_of(SYS_execve, "/bin/true", nullptr, nullptr) == EPERM);
          return 0;
        }) == 0);
}

TEST_CASE("a supervisor's filter lets it start programs, and they inherit the rest of it") {
  CHECK(in_child([] {
          HOLD(restrict_syscalls({.allow_exec = true}));
          ::execl("/bin/sh", "sh", "-c", "exit 7", nullptr);
          return 1;
        }) == 7);
}

TEST_CASE("new namespaces cannot be had through clone, and threads still can") {
  CHECK(in_child([] {
          HOLD(restrict_syscalls({}));
          HOLD(error_of(SYS_clone, CLONE_NEWNET | SIGCHLD, nullptr, nullptr, nullptr, nullptr) == EPERM);
          HOLD(error_of(SYS_clone, CLONE_NEWUSER | SIGCHLD, nullptr, nullptr, nullptr, nullptr) == EPERM);
          HOLD(error_of(SYS_clone3, nullptr, 0) == ENOSYS);
          int answer = 0;
          std::thread([&] { answer = error_of(SYS_bpf, 0, nullptr, 0); }).join();
          HOLD(answer == EPERM);
          return 0;
        }) == 0);
}

TEST_CASE("only the socket families of a proxy can be had") {
  CHECK(in_child([] {
          HOLD(restrict_syscalls({}));
          for (int family : {AF_INET, AF_INET6, AF_UNIX})
            HOLD(error_of(SYS_socket, family, SOCK_STREAM, 0) == 0);
          for (int family : {AF_PACKET, AF_ALG, AF_VSOCK, AF_BLUETOOTH}) {
            HOLD(error_of(SYS_socket, family, SOCK_RAW, 0) == EAFNOSUPPORT);
          }
          return 0;
        }) == 0);
}

#ifdef __x86_64__
TEST_CASE("a system call of another architecture kills the process") {
  CHECK(in_child([] {
          HOLD(restrict_syscalls({}));
          error_of(0x40000000 | SYS_getpid);  // x32
          return 0;
        }) == 128 + SIGSYS);
  CHECK(in_child([] {
          HOLD(restrict_syscalls({}));
          long result = 20;  // getpid of 32-bit x86
          asm volatile("int $0x80" : "+a"(result)::"memory");
          return 0;
        }) == 128 + SIGSYS);
}
#endif

TEST_CASE(
    "root that drops its privileges has no id, capability or way back left, and still dies with its parent") {
  if (::geteuid() != 0) {
    MESSAGE("SKIPPED: giving up root needs root");
    return;
  }
  CHECK(in_child([] {
          ::prctl(PR_SET_PDEATHSIG, SIGTERM);
          HOLD(drop_privileges(65532, 65532));
          HOLD((::getuid() == 65532 && ::geteuid() == 65532 && ::getgid() == 65532));
          HOLD(::getgroups(0, nullptr) == 0);
          for (const char* set : {"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"}) {
            HOLD(status_line(set) == "0000000000000000");
          }
          HOLD(status_line("NoNewPrivs") == "1");
          HOLD(::setresuid(0, 0, 0) < 0);
          int signal = 0;
          ::prctl(PR_GET_PDEATHSIG, &signal);
          HOLD(signal == SIGTERM);
          return 0;
        }) == 0);
}

TEST_CASE("only the capabilities to keep are left, and the missing ones are named") {
  if (::geteuid() != 0) {
    MESSAGE("SKIPPED: holding capabilities needs root");
    return;
  }
  CHECK(in_child([] {
          HOLD(warden::keep_capabilities({CAP_NET_ADMIN, CAP_BPF}));
          HOLD(status_line("CapEff") == "0000008000001000");
          HOLD(status_line("CapBnd") == "0000008000001000");
          auto missing = warden::missing_capabilities({CAP_BPF, CAP_SYS_ADMIN, CAP_PERFMON});
          HOLD((missing == std::vector<std::string>{"CAP_SYS_ADMIN", "CAP_PERFMON"}));
          return 0;
        }) == 0);
}

TEST_CASE("the descriptor limit is raised and memory is hidden from the same user") {
  CHECK(in_child([] {
          auto limit = raise_descriptor_limit();
          HOLD((limit && *limit == static_cast<uint64_t>(::sysconf(_SC_OPEN_MAX))));
          HOLD(hide_memory());
          HOLD(::prctl(PR_GET_DUMPABLE) == 0);
          return 0;
        }) == 0);
}

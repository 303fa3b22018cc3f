// Network namespaces of pods: opening one by path, telling it by its cookie, asking what addresses it has,
// and doing a few system calls inside. Used by the warden's and the opener's only thread; entering needs
// CAP_SYS_ADMIN.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "base/addr.h"
#include "base/fd.h"
#include "base/reason.h"

namespace nodemesh::warden {

// The calling thread is inside the namespace from enter() to the end of the object's life. Going home cannot
// fail unless the kernel lies; the process aborts then, since it must not go on in a pod's namespace.
class InNamespace {
 public:
  static Result<InNamespace> enter(int netns);
  InNamespace(InNamespace&& other) noexcept : home_(std::move(other.home_)) {}
  ~InNamespace();

 private:
  explicit InNamespace(Fd home) : home_(std::move(home)) {}
  Fd home_;
};

struct NetNs {
  Fd fd;
  uint64_t cookie = 0;
  bool ipv6 = false;  // AF_INET6 sockets can be made in it
  // Of the file it was opened by: another device or inode there later means that the namespace was replaced.
  dev_t device = 0;
  ino_t inode = 0;
};

// Opens `path` (/run/netns/x, /proc/<pid>/ns/net). Errors: absent, not a network namespace, too old a kernel.
Result<NetNs> open_netns(const std::string& path);
// True while `path` still names that namespace.
bool still_names(const std::string& path, const NetNs& netns);
// The namespace of this process.
Result<uint64_t> own_netns_cookie();
// Every address of the namespace, loopback included; asked of the kernel by netlink.
Result<std::vector<Addr>> addresses_in(int netns);

}  // namespace nodemesh::warden

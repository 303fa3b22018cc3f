#include "warden/namespaces.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <linux/nsfs.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/vfs.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "base/log.h"
#include "warden/netlink.h"

#ifndef SO_NETNS_COOKIE
#define SO_NETNS_COOKIE 71
#endif

namespace nodemesh::warden {
namespace {

Result<uint64_t> cookie_here() {
  Fd probe(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  if (!probe) return fail_errno("socket(AF_INET)");
  uint64_t cookie = 0;
  socklen_t length = sizeof cookie;
  if (::getsockopt(probe.get(), SOL_SOCKET, SO_NETNS_COOKIE, &cookie, &length) < 0) {
    return fail("the kernel cannot name network namespaces (SO_NETNS_COOKIE): Linux 5.15 or later is needed");
  }
  return cookie;
}

}  // namespace

Result<InNamespace> InNamespace::enter(int netns) {
  Fd home(::open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC));
  if (!home) return fail_errno("/proc/thread-self/ns/net");
  if (::setns(netns, CLONE_NEWNET) < 0)
    return fail_errno("entering a pod's network namespace (needs CAP_SYS_ADMIN)");
  return InNamespace(std::move(home));
}

InNamespace::~InNamespace() {
  if (!home_) return;
  if (::setns(home_.get(), CLONE_NEWNET) == 0) return;
  log::error(log::Component::warden, "cannot leave a pod's network namespace", {{"errno", errno}});
  std::abort();
}

Result<NetNs> open_netns(const std::string& path) {
  NetNs out;
  // O_NONBLOCK: the path comes from an object and may name a FIFO.
  out.fd.reset(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY));
  if (!out.fd) return fail_errno("network namespace " + path);
  struct statfs filesystem{};
  struct stat file{};
  if (::fstatfs(out.fd.get(), &filesystem) < 0 || ::fstat(out.fd.get(), &file) < 0) return fail_errno(path);
  if (filesystem.f_type != NSFS_MAGIC || ::ioctl(out.fd.get(), NS_GET_NSTYPE) != CLONE_NEWNET) {
    return fail(path + " is not a network namespace: name a file such as /run/netns/<name>");
  }
  out.device = file.st_dev;
  out.inode = file.st_ino;
  auto inside = InNamespace::enter(out.fd.get());
  if (!inside) return std::unexpected(std::move(inside.error()));
  auto cookie = cookie_here();
  if (!cookie) return std::unexpected(std::move(cookie.error()));
  out.cookie = *cookie;
  out.ipv6 = static_cast<bool>(Fd(::socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0)));
  return out;
}

bool still_names(const std::string& path, const NetNs& netns) {
  struct stat file{};
  return ::stat(path.c_str(), &file) == 0 && file.st_dev == netns.device && file.st_ino == netns.inode;
}

Result<uint64_t> own_netns_cookie() {
  return cookie_here();
}

Result<std::vector<Addr>> addresses_in(int netns) {
  auto inside = InNamespace::enter(netns);
  if (!inside) return std::unexpected(std::move(inside.error()));
  auto netlink = Netlink::open();
  if (!netlink) return std::unexpected(std::move(netlink.error()));
  std::vector<Addr> out;
  auto each = [&](const nlmsghdr& head) {
    if (head.nlmsg_type != RTM_NEWADDR || head.nlmsg_len < NLMSG_LENGTH(sizeof(ifaddrmsg))) return;
    auto* message = static_cast<const ifaddrmsg*>(NLMSG_DATA(&head));
    auto left = static_cast<int>(head.nlmsg_len - NLMSG_LENGTH(sizeof(ifaddrmsg)));
    for (auto* at = IFA_RTA(message); RTA_OK(at, left); at = RTA_NEXT(at, left)) {
      // IFA_LOCAL is the address itself where IFA_ADDRESS is the peer's.
      if (at->rta_type != IFA_LOCAL && at->rta_type != IFA_ADDRESS) continue;
      const auto* bytes = static_cast<const uint8_t*>(RTA_DATA(at));
      if (message->ifa_family == AF_INET && RTA_PAYLOAD(at) == 4) {
        if (at->rta_type == IFA_LOCAL) out.push_back(Addr::v4(bytes[0], bytes[1], bytes[2], bytes[3]));
      } else if (message->ifa_family == AF_INET6 && RTA_PAYLOAD(at) == 16) {
        Addr address;
        std::copy_n(bytes, 16, address.bytes.begin());
        out.push_back(address);
      }
    }
  };
  if (auto done = netlink->dump(NetlinkRequest(RTM_GETADDR, 0, ifaddrmsg{.ifa_family = AF_UNSPEC}), each);
      !done) {
    return std::unexpected(std::move(done.error()));
  }
  return out;
}

}  // namespace nodemesh::warden

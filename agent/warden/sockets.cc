#include "warden/sockets.h"

#include <fmt/format.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>

#include "warden/namespaces.h"

#ifndef IPV6_TRANSPARENT
#define IPV6_TRANSPARENT 75
#endif

namespace nodemesh::warden {
namespace {

constexpr int kBacklog = 4096;
constexpr int kKeepaliveSeconds = 180;
constexpr int kKeepaliveProbes = 9;

Result<> set(int fd, int level, int option, int value, const char* what) {
  if (::setsockopt(fd, level, option, &value, sizeof value) == 0) return {};
  return fail_errno(what);
}

// What the namespace's sysctls give a new socket: asked once per order, so that only differences cost a
// system call.
struct Defaults {
  bool v6only = false;
  bool probes_differ = false;
};

Defaults defaults_of(int fd, bool ipv6) {
  Defaults out;
  int value = 0;
  socklen_t length = sizeof value;
  if (ipv6) out.v6only = ::getsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &value, &length) == 0 && value != 0;
  length = sizeof value;
  out.probes_differ =
      ::getsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &value, &length) == 0 && value != kKeepaliveProbes;
  return out;
}

Result<Fd> new_socket(bool ipv6) {
  Fd fd(::socket(ipv6 ? AF_INET6 : AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, IPPROTO_TCP));
  if (!fd) return fail_errno("making a socket in the pod's namespace");
  return fd;
}

Result<> set_common(int fd, bool ipv6, const Defaults& defaults) {
  if (ipv6 && defaults.v6only) {
    if (auto ok = set(fd, IPPROTO_IPV6, IPV6_V6ONLY, 0, "IPV6_V6ONLY"); !ok) return ok;
  }
  return set(fd, IPPROTO_TCP, TCP_NODELAY, 1, "TCP_NODELAY");
}

Result<> set_keepalive(int fd, const Defaults& defaults) {
  if (auto ok = set(fd, SOL_SOCKET, SO_KEEPALIVE, 1, "SO_KEEPALIVE"); !ok) return ok;
  if (auto ok = set(fd, IPPROTO_TCP, TCP_KEEPIDLE, kKeepaliveSeconds, "TCP_KEEPIDLE"); !ok) return ok;
  if (auto ok = set(fd, IPPROTO_TCP, TCP_KEEPINTVL, kKeepaliveSeconds, "TCP_KEEPINTVL"); !ok) return ok;
  return defaults.probes_differ ? set(fd, IPPROTO_TCP, TCP_KEEPCNT, kKeepaliveProbes, "TCP_KEEPCNT")
                                : Result<>();
}

// An application's listener in the same namespace cannot vanish without the kernel telling, so no keepalive.
// One transparent flag serves both families; it and the mark need CAP_NET_ADMIN in the namespace.
Result<> set_towards_application(int fd, bool ipv6) {
  if (auto ok = set(fd, SOL_SOCKET, SO_MARK, NM_MARK, "SO_MARK"); !ok) return ok;
  if (auto ok = ipv6 ? set(fd, IPPROTO_IPV6, IPV6_TRANSPARENT, 1, "IPV6_TRANSPARENT")
                     : set(fd, IPPROTO_IP, IP_TRANSPARENT, 1, "IP_TRANSPARENT");
      !ok) {
    return ok;
  }
  if (auto ok = set(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1, "IP_BIND_ADDRESS_NO_PORT"); !ok) return ok;
  // Connections to several ports may share a source port, as the kernel's own choice would have it; and an
  // application that sets the same may listen there.
  return set(fd, SOL_SOCKET, SO_REUSEADDR, 1, "SO_REUSEADDR");
}

Result<> bind_ephemeral(int fd, bool ipv6) {
  sockaddr_in6 six{.sin6_family = AF_INET6};
  sockaddr_in four{.sin_family = AF_INET};
  int done = ipv6 ? ::bind(fd, reinterpret_cast<sockaddr*>(&six), sizeof six)
                  : ::bind(fd, reinterpret_cast<sockaddr*>(&four), sizeof four);
  return done == 0 ? Result<>() : fail_errno("binding a listener in the pod's namespace");
}

// SO_REUSEADDR comes last: from bind to listen it would let a process of the pod bind the port too. It is for
// the accepted sockets, which have the application's port and must not keep the application from binding it.
// SO_REUSEPORT is never set: with it a process of our uid could join us.
Result<Fd> new_listener(bool ipv6) {
  auto fd = new_socket(ipv6);
  if (!fd) return fd;
  Defaults defaults = defaults_of(fd->get(), ipv6);
  if (auto ok = set_common(fd->get(), ipv6, defaults); !ok) return std::unexpected(std::move(ok.error()));
  if (auto ok = set_keepalive(fd->get(), defaults); !ok) return std::unexpected(std::move(ok.error()));
  if (auto ok = bind_ephemeral(fd->get(), ipv6); !ok) return std::unexpected(std::move(ok.error()));
  if (::listen(fd->get(), kBacklog) < 0) return fail_errno("listening in the pod's namespace");
  if (auto ok = set(fd->get(), SOL_SOCKET, SO_REUSEADDR, 1, "SO_REUSEADDR"); !ok)
    return std::unexpected(std::move(ok.error()));
  return fd;
}

}  // namespace

Result<std::vector<Fd>> make_listeners(const SocketOrder& order) {
  auto inside = InNamespace::enter(order.netns);
  if (!inside) return std::unexpected(std::move(inside.error()));
  std::vector<Fd> out;
  out.reserve(size_t{order.count} * NM_LISTENER_COUNT);
  while (out.size() < size_t{order.count} * NM_LISTENER_COUNT) {
    auto listener = new_listener(order.ipv6);
    if (!listener) return std::unexpected(std::move(listener.error()));
    out.push_back(std::move(*listener));
  }
  return out;
}

Result<std::vector<Fd>> make_sockets(const SocketOrder& order, SocketKind kind) {
  auto inside = InNamespace::enter(order.netns);
  if (!inside) return std::unexpected(std::move(inside.error()));
  std::vector<Fd> out;
  out.reserve(order.count);
  Defaults defaults;
  for (uint32_t i = 0; i < order.count; ++i) {
    auto fd = new_socket(order.ipv6);
    if (!fd) return std::unexpected(std::move(fd.error()));
    if (i == 0) defaults = defaults_of(fd->get(), order.ipv6);
    if (auto ok = set_common(fd->get(), order.ipv6, defaults); !ok)
      return std::unexpected(std::move(ok.error()));
    Result<> ok;
    if (kind == SocketKind::out) {
      ok = set_keepalive(fd->get(), defaults);
    } else if (order.source_kept) {
      ok = set_towards_application(fd->get(), order.ipv6);
    }
    if (!ok) return std::unexpected(std::move(ok.error()));
    out.push_back(std::move(*fd));
  }
  return out;
}

}  // namespace nodemesh::warden

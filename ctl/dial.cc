#include "ctl/dial.h"

#include <netdb.h>
#undef NO_ADDRESS  // also the name of a Reason
#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>

namespace nodemesh::ctl {
namespace {

std::unexpected<Error> unreachable(std::string why) {
  return fail(Reason::CONNECT_FAILED, std::move(why));
}

Result<Fd> connect(Fd fd, const sockaddr* addr, socklen_t length, Monotonic::time_point until) {
  if (!fd) return unreachable(std::strerror(errno));
  if (::connect(fd.get(), addr, length) == 0) return fd;
  if (errno != EINPROGRESS && errno != EAGAIN) return unreachable(std::strerror(errno));
  if (!wait_ready(fd.get(), POLLOUT, until)) return unreachable("no answer in time");
  int error = 0;
  socklen_t size = sizeof error;
  ::getsockopt(fd.get(), SOL_SOCKET, SO_ERROR, &error, &size);
  if (error) return unreachable(std::strerror(error));
  return fd;
}

}  // namespace

bool wait_ready(int fd, short events, Monotonic::time_point until) {
  for (;;) {
    auto left = std::chrono::duration_cast<milliseconds>(until - Monotonic::now()).count();
    if (left <= 0) return false;
    pollfd poll_fd{fd, events, 0};
    int ready = ::poll(&poll_fd, 1, static_cast<int>(left));
    if (ready > 0) return true;
    if (ready == 0 || errno != EINTR) return false;
  }
}

Result<Fd> dial(const SockAddr& to, Monotonic::time_point until) {
  int family = to.ip.is_v4() ? AF_INET : AF_INET6;
  sockaddr_storage native;
  auto length = to.to_native(native, family);
  Fd fd(::socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  return connect(std::move(fd), reinterpret_cast<const sockaddr*>(&native), length, until);
}

Result<Fd> dial_unix(const std::string& path, Monotonic::time_point until) {
  sockaddr_un native{.sun_family = AF_UNIX, .sun_path = {}};
  if (path.empty() || path.size() >= sizeof native.sun_path)
    return unreachable("the path is too long for a socket");
  std::memcpy(native.sun_path, path.data(), path.size());
  Fd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  return connect(std::move(fd), reinterpret_cast<const sockaddr*>(&native), sizeof native, until);
}

std::vector<SockAddr> addresses_of(const std::string& host, uint16_t port) {
  addrinfo hints{}, *found = nullptr;
  hints.ai_socktype = SOCK_STREAM;
  std::vector<SockAddr> out;
  if (::getaddrinfo(host.c_str(), nullptr, &hints, &found) != 0) return out;
  std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> owned(found, &::freeaddrinfo);
  for (const addrinfo* one = found; one != nullptr; one = one->ai_next) {
    sockaddr_storage native{};
    std::copy_n(reinterpret_cast<const char*>(one->ai_addr), one->ai_addrlen,
                reinterpret_cast<char*>(&native));
    SockAddr address = SockAddr::from_native(native);
    address.port = port;
    if (std::ranges::find(out, address) == out.end()) out.push_back(address);
  }
  return out;
}

}  // namespace nodemesh::ctl

#include "io/socket.h"

#include <sys/socket.h>

#include <cerrno>

namespace nodemesh::io {

int family_of(int fd) {
  int family = AF_INET6;
  socklen_t size = sizeof family;
  ::getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &family, &size);
  return family;
}

SockAddr local_address(int fd) {
  sockaddr_storage native{};
  socklen_t size = sizeof native;
  return ::getsockname(fd, reinterpret_cast<sockaddr*>(&native), &size) == 0 ? SockAddr::from_native(native)
                                                                             : SockAddr{};
}

SockAddr peer_address(int fd) {
  sockaddr_storage native{};
  socklen_t size = sizeof native;
  return ::getpeername(fd, reinterpret_cast<sockaddr*>(&native), &size) == 0 ? SockAddr::from_native(native)
                                                                             : SockAddr{};
}

int take_error(int fd) {
  int error = 0;
  socklen_t size = sizeof error;
  return ::getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) == 0 ? error : errno;
}

void close_with_reset(Fd& fd) {
  linger reset{1, 0};
  ::setsockopt(fd.get(), SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
  fd.reset();
}

Reason connect_reason(int error) {
  switch (error) {
    case ECONNREFUSED:
      return Reason::CONNECT_REFUSED;
    case ETIMEDOUT:
      return Reason::CONNECT_TIMEOUT;
    default:
      return Reason::CONNECT_FAILED;
  }
}

}  // namespace nodemesh::io

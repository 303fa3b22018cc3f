#include "admin/listen.h"

#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "base/addr.h"

namespace nodemesh::admin {
namespace {

constexpr int kBacklog = 64;

std::unexpected<Error> cannot(std::string_view address, int error) {
  std::string text = "cannot listen on " + std::string(address) + ": ";
  if (error == EADDRINUSE)
    return fail(text + "another process holds it; stop that process or choose another address");
  if (error == EACCES) return fail(text + "permission denied; choose a path or port that this user may use");
  return fail(text + std::strerror(error));
}

Result<Fd> open_tcp(std::string_view text, const SockAddr& addr) {
  int family = addr.ip.is_v4() ? AF_INET : AF_INET6;
  Fd fd(::socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!fd && errno == EAFNOSUPPORT && addr.ip.is_unspecified())
    return open_tcp(text, {Addr::v4(0, 0, 0, 0), addr.port});
  if (!fd) return cannot(text, errno);
  int on = 1, off = 0;
  ::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (family == AF_INET6) ::setsockopt(fd.get(), IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off);
  sockaddr_storage native;
  auto length = addr.to_native(native, family);
  if (::bind(fd.get(), reinterpret_cast<sockaddr*>(&native), length) != 0) return cannot(text, errno);
  if (::listen(fd.get(), kBacklog) != 0) return cannot(text, errno);
  return fd;
}

// A socket file that nobody answers at is what a killed process left.
bool is_stale(const sockaddr_un& native) {
  struct stat status{};
  if (::lstat(native.sun_path, &status) != 0 || !S_ISSOCK(status.st_mode)) return false;
  Fd probe(::socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  return probe && ::connect(probe.get(), reinterpret_cast<const sockaddr*>(&native), sizeof native) != 0 &&
         errno == ECONNREFUSED;
}

Result<Fd> open_unix(std::string_view text, std::string_view path) {
  sockaddr_un native{.sun_family = AF_UNIX, .sun_path = {}};
  if (path.empty() || path.size() >= sizeof native.sun_path) {
    return fail("cannot listen on " + std::string(text) +
                ": a socket's path has 1 to 107 bytes; choose a shorter one");
  }
  std::memcpy(native.sun_path, path.data(), path.size());
  Fd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!fd) return cannot(text, errno);
  if (is_stale(native)) ::unlink(native.sun_path);
  if (::bind(fd.get(), reinterpret_cast<sockaddr*>(&native), sizeof native) != 0) return cannot(text, errno);
  // Between bind and listen nobody can connect, so there is no moment with a wider mode.
  if (::chmod(native.sun_path, 0600) != 0) return cannot(text, errno);
  if (::listen(fd.get(), kBacklog) != 0) return cannot(text, errno);
  return fd;
}

}  // namespace

Result<Fd> open_listener(std::string_view address) {
  if (address.starts_with("unix:")) return open_unix(address, address.substr(5));
  auto parsed = SockAddr::parse(address);
  if (!parsed)
    return fail("'" + std::string(address) + "' is not an address: write ip:port, [ip]:port or unix:/path");
  return open_tcp(address, *parsed);
}

}  // namespace nodemesh::admin

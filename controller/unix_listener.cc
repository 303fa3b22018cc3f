#include "controller/unix_listener.h"

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <cerrno>
#include <cstring>

#include <fmt/format.h>

#include "base/log.h"

namespace nodemesh::controller {
namespace {

constexpr auto kDescriptorPause = milliseconds(100);  // when there is none left for another connection

}  // namespace

Result<Fd> listen_unix(const std::string& path, gid_t gid) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof address.sun_path)
    return fail("socket path \"" + path + "\" must have 1 to 107 bytes");
  std::memcpy(address.sun_path, path.data(), path.size());
  auto* raw = reinterpret_cast<sockaddr*>(&address);
  struct stat info{};
  if (::lstat(path.c_str(), &info) == 0) {
    if (!S_ISSOCK(info.st_mode))
      return fail(path + " exists and is not a socket; remove it or listen elsewhere");
    Fd probe(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
    if (::connect(probe.get(), raw, sizeof address) == 0 || errno != ECONNREFUSED) {
      return fail(path + " is in use by another process; stop it or listen elsewhere");
    }
    if (::unlink(path.c_str()) != 0) return fail_errno(path);
  }
  Fd out(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!out) return fail_errno("socket");
  mode_t before = ::umask(0117);  // start-up, one thread: between bind and chmod the socket would stand open
  int bound = ::bind(out.get(), raw, sizeof address);
  ::umask(before);
  if (bound != 0) return fail_errno(path);
  if (gid != static_cast<gid_t>(-1) && ::chown(path.c_str(), static_cast<uid_t>(-1), gid) != 0)
    return fail_errno(path);
  if (::listen(out.get(), 128) != 0) return fail_errno(path);
  return out;
}

Result<std::unique_ptr<UnixFront>> UnixFront::start(io::Reactor& reactor, Settings settings,
                                                    Accepted accepted) {
  std::unique_ptr<UnixFront> out(new UnixFront(reactor, std::move(settings), std::move(accepted)));
  auto socket = listen_unix(out->settings_.path, out->settings_.gid);
  if (!socket) return std::unexpected(socket.error());
  out->socket_ = std::move(*socket);
  if (auto added = reactor.add(out->socket_.get(), *out); !added) return std::unexpected(added.error());
  return out;
}

UnixFront::~UnixFront() {
  if (!socket_) return;
  reactor_.remove(socket_.get(), *this);
  ::unlink(settings_.path.c_str());
}

void UnixFront::accept_all() {
  while (true) {
    Fd peer(::accept4(socket_.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
    if (!peer && (errno == EINTR || errno == ECONNABORTED)) continue;
    // Edge-triggered: without descriptors no event would come for those who wait already.
    if (!peer && errno != EAGAIN) return accept_again_.arm(reactor_, kDescriptorPause);
    if (!peer) return;
    ucred who{};
    socklen_t size = sizeof who;
    bool known = ::getsockopt(peer.get(), SOL_SOCKET, SO_PEERCRED, &who, &size) == 0;
    if (!known || !settings_.allowed_uids.contains(who.uid)) {
      log::warn(log::Component::controller, "connection refused: uid is not allowed",
                {{"uid", who.uid}, {"pid", who.pid}});
      continue;
    }
    log::debug(log::Component::controller, "connection", {{"uid", who.uid}, {"pid", who.pid}});
    accepted_(std::move(peer), fmt::format("uid {} pid {}", who.uid, who.pid));
  }
}

}  // namespace nodemesh::controller

// The warden's end of the channel.
#include "warden/channel.h"

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <algorithm>
#include <cerrno>

#include "base/log.h"

namespace nodemesh::warden {
namespace {
constexpr int kMessagesPerTurn = 64;
}

ProxyChannel::ProxyChannel(io::Reactor& reactor, ProxyChannelEvents& events, Fd socket, pid_t peer)
    : reactor_(reactor),
      events_(events),
      socket_(std::move(socket)),
      peer_(peer),
      failing_([this] { finish(); }),
      reading_([this] { read_some(); }) {
  if (auto added = reactor_.add(socket_.fd(), *this); !added) fail_later(std::move(added.error()));
}

ProxyChannel::~ProxyChannel() {
  if (socket_) reactor_.remove(socket_.fd(), *this, true);
}

void ProxyChannel::on_events(uint32_t events) {
  if (failed_) return;
  if (events & EPOLLOUT) {
    if (auto flushed = socket_.flush(); !flushed) return fail_later(std::move(flushed.error()));
  }
  read_some();
}

// A few messages a turn: a proxy that floods the channel must not keep the warden from its heartbeat.
void ProxyChannel::read_some() {
  for (int left = kMessagesPerTurn; !failed_; --left) {
    if (left == 0) return reading_.schedule(reactor_);
    auto packet = socket_.receive();
    if (!packet) return fail_later(std::move(packet.error()));
    if (packet->bytes.empty()) return;
    request_ = socket_.next_expected();
    auto message = decode_from_proxy(packet->bytes, packet->descriptors.size(), request_);
    if (!message) return fail_later(std::move(message.error()));
    events_.on_proxy_message(*this, std::move(*message), std::move(packet->descriptors));
  }
}

void ProxyChannel::fail_later(Error why) {
  if (failed_) return;
  failed_ = true;
  failure_ = std::move(why);
  failing_.schedule(reactor_);
}

void ProxyChannel::finish() {
  Error why = std::move(failure_);
  events_.on_proxy_closed(*this, why);
}

Result<std::unique_ptr<ChannelListener>> ChannelListener::create(io::Reactor& reactor, std::string path,
                                                                 uid_t proxy_uid, gid_t proxy_gid,
                                                                 Accepted accepted) {
  sockaddr_un address{.sun_family = AF_UNIX};
  if (path.size() >= sizeof address.sun_path) {
    return fail("socket path " + path + " is longer than 107 bytes: choose a shorter --run-dir");
  }
  std::ranges::copy(path, address.sun_path);
  auto* native = reinterpret_cast<sockaddr*>(&address);
  Fd probe(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!probe) return fail_errno("socket(AF_UNIX)");
  if (::connect(probe.get(), native, sizeof address) == 0 || errno == EAGAIN) {
    return fail("socket " + path + " is served by another warden: stop it or choose another --run-dir");
  }
  bool absent = errno == ENOENT;
  struct stat file{};
  // A plain file refuses connections just as a socket without a server does.
  if (!absent && (errno != ECONNREFUSED || ::stat(path.c_str(), &file) < 0 || !S_ISSOCK(file.st_mode))) {
    return fail("socket path " + path + " is taken by something else: remove it or choose another --run-dir");
  }
  if (!absent && ::unlink(path.c_str()) < 0) return fail_errno("removing the stale socket " + path);
  Fd fd(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd) return fail_errno("socket(AF_UNIX)");
  // The file must never exist with wider rights, not even between bind and chmod.
  mode_t before = ::umask(0117);
  int bound = ::bind(fd.get(), native, sizeof address);
  int error = errno;
  ::umask(before);
  errno = error;
  if (bound < 0) return fail_errno("socket path " + path);
  // In a setgid directory of that group the file has it already, and no CAP_CHOWN is needed.
  struct stat made{};
  if (::stat(path.c_str(), &made) < 0) return fail_errno(path);
  if (made.st_gid != proxy_gid && ::chown(path.c_str(), static_cast<uid_t>(-1), proxy_gid) < 0) {
    return fail_errno("giving " + path + " to group " + std::to_string(proxy_gid) +
                      " (set the group and the setgid bit of --run-dir)");
  }
  if (::listen(fd.get(), 8) < 0) return fail_errno("listening on " + path);
  std::unique_ptr<ChannelListener> listener(
      new ChannelListener(reactor, std::move(path), proxy_uid, std::move(fd), std::move(accepted)));
  if (auto added = reactor.add(listener->fd_.get(), *listener, EPOLLIN); !added) {
    return std::unexpected(std::move(added.error()));
  }
  return listener;
}

ChannelListener::ChannelListener(io::Reactor& reactor, std::string path, uid_t proxy_uid, Fd fd,
                                 Accepted accepted)
    : reactor_(reactor),
      path_(std::move(path)),
      proxy_uid_(proxy_uid),
      fd_(std::move(fd)),
      accepted_(std::move(accepted)) {}

ChannelListener::~ChannelListener() {
  reactor_.remove(fd_.get(), *this, true);
  ::unlink(path_.c_str());
}

void ChannelListener::on_events(uint32_t) {
  for (;;) {
    Fd socket(::accept4(fd_.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
    if (!socket) {
      if (errno == EINTR || errno == ECONNABORTED) continue;
      if (errno != EAGAIN) {
        log::warn(log::Component::warden, "cannot accept the proxy", {{"errno", errno}});
      }
      return;
    }
    ucred peer{};
    socklen_t length = sizeof peer;
    if (::getsockopt(socket.get(), SOL_SOCKET, SO_PEERCRED, &peer, &length) < 0 ||
        (peer.uid != proxy_uid_ && peer.uid != ::geteuid())) {
      log::warn(log::Component::warden, "refused a stranger on the channel",
                {{"uid", peer.uid}, {"pid", peer.pid}});
      continue;
    }
    accepted_(std::move(socket), peer.pid);
  }
}

}  // namespace nodemesh::warden

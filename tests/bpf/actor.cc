#include "bpf/actor.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "bpf/abi.h"

namespace nodemesh::test {
namespace {

enum Op { kConnect, kReconnect, kListen };

// One message with at most one descriptor.
bool send_message(int channel, const void* data, size_t size, int fd) {
  iovec part{const_cast<void*>(data), size};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  if (fd >= 0) {
    message.msg_control = control;
    message.msg_controllen = sizeof(control);
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    std::memcpy(CMSG_DATA(header), &fd, sizeof(fd));
  }
  return ::sendmsg(channel, &message, MSG_NOSIGNAL) == static_cast<ssize_t>(size);
}

bool receive_message(int channel, void* data, size_t size, Fd& fd) {
  iovec part{data, size};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  if (::recvmsg(channel, &message, MSG_CMSG_CLOEXEC) != static_cast<ssize_t>(size)) return false;
  if (cmsghdr* header = CMSG_FIRSTHDR(&message)) {
    int got = -1;
    std::memcpy(&got, CMSG_DATA(header), sizeof(got));
    fd.reset(got);
  }
  return true;
}

int family_of(const Actor::Request& request) {
  return request.family ? request.family : request.to.ip.is_v4() ? AF_INET : AF_INET6;
}

int connect_to(int fd, const Actor::Request& request) {
  sockaddr_storage native{};
  const socklen_t length = request.to.to_native(native, family_of(request));
  if (request.fast_open)
    return ::sendto(fd, "x", 1, MSG_FASTOPEN, reinterpret_cast<sockaddr*>(&native), length) == 1 ? 0 : errno;
  return ::connect(fd, reinterpret_cast<sockaddr*>(&native), length) == 0 ? 0 : errno;
}

int bind_to(int fd, const SockAddr& address, int family) {
  sockaddr_storage native{};
  const socklen_t length = address.to_native(native, family);
  return ::bind(fd, reinterpret_cast<sockaddr*>(&native), length) == 0 ? 0 : errno;
}

void set_option(int fd, int level, int name) {
  const int on = 1;
  ::setsockopt(fd, level, name, &on, sizeof(on));
}

int do_connect(const Actor::Request& request, Fd& fd) {
  fd.reset(::socket(family_of(request), SOCK_STREAM | SOCK_CLOEXEC, request.protocol));
  if (!fd) return errno;
  const timeval limit{request.limit_s, 0};
  ::setsockopt(fd.get(), SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
  if (request.from != SockAddr{}) {
    set_option(fd.get(), SOL_SOCKET, SO_REUSEADDR);
    set_option(fd.get(), SOL_IP, IP_TRANSPARENT);
    const int mark = NM_MARK;
    ::setsockopt(fd.get(), SOL_SOCKET, SO_MARK, &mark, sizeof(mark));
    if (int error = bind_to(fd.get(), request.from, family_of(request))) return error;
  }
  return connect_to(fd.get(), request);
}

int do_listen(const Actor::Request& request, Fd& fd) {
  fd.reset(::socket(request.family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd) return errno;
  set_option(fd.get(), SOL_SOCKET, SO_REUSEADDR);
  if (request.reuseport) set_option(fd.get(), SOL_SOCKET, SO_REUSEPORT);
  if (int error = bind_to(fd.get(), request.to, request.family)) return error;
  return ::listen(fd.get(), 4096) == 0 ? 0 : errno;
}

int join(const char* cgroup_directory) {
  const std::string procs = std::string(cgroup_directory) + "/cgroup.procs";
  Fd file(::open(procs.c_str(), O_WRONLY | O_CLOEXEC));
  return file && ::write(file.get(), "0", 1) == 1 ? 0 : errno;
}

[[noreturn]] void serve(int channel) {
  for (;;) {
    Actor::Request request;
    Fd fd;
    if (!receive_message(channel, &request, sizeof(request), fd)) ::_exit(0);
    int error = 0;
    switch (request.op) {
      case kConnect:
        error = do_connect(request, fd);
        break;
      case kReconnect:
        error = connect_to(fd.get(), request);
        break;
      case kListen:
        error = do_listen(request, fd);
        break;
    }
    if (!send_message(channel, &error, sizeof(error), fd.get())) ::_exit(0);
  }
}

[[noreturn]] void die(const char* what) {
  std::perror(what);
  std::abort();
}

}  // namespace

Actor::Actor(const std::string& cgroup_directory, int netns) {
  int ends[2];
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) != 0) die("socketpair");
  child_ = ::fork();
  if (child_ < 0) die("fork");
  if (child_ == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    ::close(ends[0]);
    if (join(cgroup_directory.c_str()) != 0) die("join the cgroup");
    if (::setns(netns, CLONE_NEWNET) != 0) die("enter the network namespace");
    // Listeners and namespaces that the test closes must be gone then.
    ::dup2(ends[1], 3);
    ::close_range(4, ~0u, 0);
    serve(3);
  }
  ::close(ends[1]);
  channel_.reset(ends[0]);
}

Actor::~Actor() {
  channel_.reset();
  ::kill(child_, SIGKILL);
  ::waitpid(child_, nullptr, 0);
}

Connected Actor::ask(const Request& request, int fd) {
  Connected answer;
  if (!send_message(channel_.get(), &request, sizeof(request), fd) ||
      !receive_message(channel_.get(), &answer.error, sizeof(answer.error), answer.fd))
    die("the actor is gone");
  return answer;
}

Connected Actor::connect(const SockAddr& to, int family, const SockAddr& source) {
  return ask({.op = kConnect, .family = family, .to = to, .from = source});
}

int Actor::connect_in_vain(const SockAddr& to) {
  return ask({.op = kConnect, .to = to, .limit_s = 1}).error;
}

Connected Actor::connect_multipath(const SockAddr& to) {
  return ask({.op = kConnect, .to = to, .protocol = IPPROTO_MPTCP});
}

Connected Actor::connect_fast_open(const SockAddr& to) {
  return ask({.op = kConnect, .to = to, .fast_open = true});
}

int Actor::reconnect(int fd, const SockAddr& to, int family) {
  return ask({.op = kReconnect, .family = family, .to = to}, fd).error;
}

Fd Actor::listen(const SockAddr& at, int family, bool reuseport) {
  Connected made = ask({.op = kListen, .family = family, .to = at, .reuseport = reuseport});
  errno = made.error;
  if (made.error) die("listen");
  return std::move(made.fd);
}

}  // namespace nodemesh::test

// A child process in a cgroup and a network namespace of the test's choice that makes, connects and binds
// sockets there and hands them over: the programs ask who is connecting, so it must be somebody of that
// cgroup. Owned by the test.
#pragma once

#include <sys/types.h>

#include <string>

#include "base/addr.h"
#include "base/fd.h"

namespace nodemesh::test {

struct Connected {
  Fd fd;          // the socket in any case
  int error = 0;  // errno of connect(), 0 on success
};

class Actor {
 public:
  // `netns` is borrowed. Aborts the test run when the child cannot be put there.
  Actor(const std::string& cgroup_directory, int netns);
  ~Actor();
  Actor(const Actor&) = delete;
  Actor& operator=(const Actor&) = delete;

  // connect() with a limit of 20 s, from `source` if given, with the mark of borrowed addresses. Family
  // AF_INET6 with an IPv4 destination is v4-mapped; 0 picks the destination's.
  Connected connect(const SockAddr& to, int family = 0, const SockAddr& source = {});
  // The error of one that must fail by itself, or after a second in which nobody answered.
  int connect_in_vain(const SockAddr& to);
  // The same by ways that do not look like connect() on a TCP socket.
  Connected connect_multipath(const SockAddr& to);  // an IPPROTO_MPTCP socket
  Connected connect_fast_open(const SockAddr& to);  // sendto() with MSG_FASTOPEN and one byte
  // connect() again on a socket that exists.
  int reconnect(int fd, const SockAddr& to, int family);
  // A listening socket; port 0 lets the kernel choose. With `reuseport` it may join a group.
  Fd listen(const SockAddr& at, int family, bool reuseport = false);

  struct Request {
    int op;
    int family;
    SockAddr to;
    SockAddr from;
    bool reuseport;
    int protocol;
    bool fast_open;
    int limit_s = 20;
  };

 private:
  Connected ask(const Request& request, int fd = -1);

  Fd channel_;
  pid_t child_ = -1;
};

}  // namespace nodemesh::test

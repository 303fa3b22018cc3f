// Making sockets inside a pod's namespace: listeners and the two kinds of upstream sockets. Plain
// system calls of the opener process; memory and cgroup of a socket are those of the process that makes it,
// so nobody else does.
#pragma once

#include <cstdint>
#include <vector>

#include "base/fd.h"
#include "base/reason.h"
#include "warden/message.h"

namespace nodemesh::warden {

struct SocketOrder {
  int netns = -1;            // borrowed
  bool ipv6 = false;         // AF_INET6 for both families, otherwise AF_INET
  bool source_kept = false;  // `in` sockets: may bind the client's address
  uint32_t count = 0;        // sockets, or workers
};

// NM_LISTENER_COUNT × `count` listening sockets, ordered by kind, then worker. Each has an ephemeral port
// that no other socket can bind; what accepted sockets need (TCP_NODELAY, keepalive) is set here, since they
// inherit it.
Result<std::vector<Fd>> make_listeners(const SocketOrder& order);
// `count` unconnected sockets. All or an error.
Result<std::vector<Fd>> make_sockets(const SocketOrder& order, SocketKind kind);

}  // namespace nodemesh::warden

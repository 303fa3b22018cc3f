// The few socket calls of the data path, with errors as values. Any thread.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/addr.h"
#include "base/fd.h"
#include "base/reason.h"

namespace nodemesh::io {

// AF_INET or AF_INET6 of an existing socket.
int family_of(int fd);
SockAddr local_address(int fd);
SockAddr peer_address(int fd);
// Pending error of a socket after a non-blocking connect (SO_ERROR); 0 when it is connected.
int take_error(int fd);
// Closes with RST instead of FIN, so that truncation never looks like completion (SO_LINGER 0).
void close_with_reset(Fd& fd);
// The Reason for an errno of connect(2).
Reason connect_reason(int error);

}  // namespace nodemesh::io

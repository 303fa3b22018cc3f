// Blocking sockets with a deadline, for commands. Any thread.
#pragma once

#include <string>
#include <vector>

#include "base/addr.h"
#include "base/clock.h"
#include "base/fd.h"
#include "base/reason.h"

namespace nodemesh::ctl {

// True when `fd` has one of `events` (poll(2)) before `until`.
bool wait_ready(int fd, short events, Monotonic::time_point until);

// A connected, non-blocking socket; the error, a CONNECT_FAILED, says only why there is none.
Result<Fd> dial(const SockAddr& to, Monotonic::time_point until);
Result<Fd> dial_unix(const std::string& path, Monotonic::time_point until);

// All addresses of a name or of an address itself, each once; empty where there are none.
std::vector<SockAddr> addresses_of(const std::string& host, uint16_t port);

}  // namespace nodemesh::ctl

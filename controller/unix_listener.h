// A listening Unix stream socket with the modes and the stale-file rules of a daemon. Start-up only.
#pragma once

#include <sys/types.h>

#include <string>

#include "base/fd.h"
#include "base/reason.h"

namespace nodemesh::controller {

// Non-blocking, mode 0660, group `gid` (-1: unchanged). A socket file that nobody listens on is replaced; one
// in use, or a file that is no socket, is an error.
Result<Fd> listen_unix(const std::string& path, gid_t gid);

}  // namespace nodemesh::controller

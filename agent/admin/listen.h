// Listening sockets for the admin ports, non-blocking and close-on-exec. Any thread.
#pragma once

#include <string_view>

#include "base/fd.h"
#include "base/reason.h"

namespace nodemesh::admin {

// The address forms of Server::listen.
Result<Fd> open_listener(std::string_view address);

}  // namespace nodemesh::admin

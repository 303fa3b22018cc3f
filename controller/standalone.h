// The controller of a standalone mesh: the authority of all nodes of one folder, on a Unix socket.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "base/clock.h"
#include "base/reason.h"
#include "controller/state_root.h"
#include "io/reactor.h"

namespace nodemesh::controller {

struct StandaloneOptions {
  std::string config, listen;
  StateRoot::Settings root;
  seconds max_lifetime{24 * 3600};
  std::vector<uid_t> allowed_uids;
  int64_t socket_gid = -1;
};

// Returns after SIGTERM or SIGINT; fails with one sentence for the operator.
Result<> run_standalone(io::Reactor& reactor, const Clock& clock, const StandaloneOptions& options);

}  // namespace nodemesh::controller

// Serves IstioCertificateService on a Unix socket (mode 0660). The socket is accepted on the main thread,
// where the peer's uid is read from the kernel and checked before gRPC sees a byte; gRPC's threads only parse
// and write, each decision is posted to the main thread. All of gRPC's headers stay in this file's .cc.
#pragma once

#include <sys/types.h>

#include <memory>
#include <set>
#include <string>

#include "base/reason.h"
#include "controller/issuer.h"
#include "io/mailbox.h"
#include "io/reactor.h"

namespace nodemesh::controller {

class GrpcServer {
 public:
  struct Settings {
    std::string socket_path;
    std::set<uid_t> allowed_uids;
    gid_t socket_gid = static_cast<gid_t>(-1);  // -1: as the process
  };
  // References outlive the server. Fails when the path is in use by a living process; a dead one's socket is
  // replaced.
  static Result<std::unique_ptr<GrpcServer>> start(io::Reactor& reactor, const Issuer& issuer,
                                                   Settings settings);
  virtual ~GrpcServer() = default;  // finishes calls in flight within a second, removes the socket
};

}  // namespace nodemesh::controller

// Speaks gRPC (IstioCertificateService) on connections that were accepted, and where needed decrypted,
// elsewhere. gRPC's threads only parse and write; each decision is posted to the main thread. All of gRPC's
// headers stay in this file's .cc.
#pragma once

#include <memory>
#include <string>

#include "base/fd.h"
#include "base/reason.h"
#include "controller/issuer.h"
#include "io/mailbox.h"
#include "io/reactor.h"

namespace nodemesh::controller {

class GrpcServer {
 public:
  // References outlive the server.
  static Result<std::unique_ptr<GrpcServer>> start(io::Reactor& reactor, Issuer& issuer);
  // Calls in flight end as unavailable; waits for that, at most a second or so.
  virtual ~GrpcServer() = default;
  // Serves the peer at the other end of this stream socket, `name` in the log.
  virtual void serve(Fd peer, std::string name) = 0;
};

}  // namespace nodemesh::controller

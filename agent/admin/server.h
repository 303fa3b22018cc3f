// The admin server: metrics, readiness and the JSON views of one process, over HTTP/1.1 on TCP and Unix
// sockets. Runs wholly on the admin thread's reactor, so that no client, however slow, is felt by the
// workers. Every client is bounded: head 8 KiB, one request at a time, 10 s to send it, 30 s without progress
// while it is answered, and a limit of connections per port (the one waiting longest gives way).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "admin/routes.h"
#include "admin/sources.h"
#include "base/addr.h"
#include "base/fd.h"
#include "base/reason.h"
#include "io/mailbox.h"
#include "io/reactor.h"

namespace nodemesh::admin {

struct ServerLimits {
  size_t connections_per_surface = 32;
  milliseconds head{10'000}, idle{60'000}, answer{5'000}, progress{30'000};
};

class Server {
 public:
  // On the admin thread. Sources and whoever still holds a Reply must not call it after the server is gone.
  Server(io::Reactor& reactor, Sources sources, ServerLimits limits = {});
  ~Server();
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  // "0.0.0.0:15020", "[::]:15020" (both families where the machine has IPv6), or "unix:/path" (mode 0600;
  // what a dead process left at the path is replaced). The error is one sentence that says what holds the
  // port and what to do.
  Result<> listen(Surface surface, std::string_view address);
  // Serves a listening socket that was made elsewhere.
  Result<> adopt(Surface surface, Fd listener);
  // Of the last TCP listener made by listen(), for port 0.
  SockAddr last_address() const { return last_address_; }
  size_t connections() const;

 private:
  class Listener;
  class Connection;
  void accepted(Surface surface, Fd socket);
  void close(uint64_t id);
  void make_room(Surface surface);

  io::Reactor& reactor_;
  io::Mailbox mailbox_;
  const ServerLimits limits_;
  Routes routes_;
  SockAddr last_address_;
  uint64_t next_id_ = 1;
  std::vector<std::unique_ptr<Listener>> listeners_;
  std::unordered_map<uint64_t, std::unique_ptr<Connection>> connections_;
};

}  // namespace nodemesh::admin

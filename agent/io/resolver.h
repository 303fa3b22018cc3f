// Names to addresses by getaddrinfo(3), which may block for many seconds and therefore runs on a thread of
// its own. One question at a time; used when a connection is dialled, never for a request. Owned by the
// reactor's thread; its destructor waits for a question under way.
#pragma once

#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "base/addr.h"
#include "base/reason.h"
#include "io/mailbox.h"

namespace nodemesh::io {

class Resolver {
 public:
  using Done = std::move_only_function<void(Result<std::vector<SockAddr>>)>;
  explicit Resolver(Reactor& reactor) : mailbox_(reactor) {}
  ~Resolver();
  Resolver(const Resolver&) = delete;
  Resolver& operator=(const Resolver&) = delete;

  // REQUIRES: no other question is under way. `done` runs on the reactor, never before this returns;
  // addresses in getaddrinfo's order, at least one.
  void resolve(const std::string& host, uint16_t port, Done done);

 private:
  Mailbox mailbox_;
  std::thread thread_;
  Done done_;
};

}  // namespace nodemesh::io

// The way in for the processes of a standalone node: a listening Unix stream socket with the modes and the
// stale-file rules of a daemon, which takes only peers of certain uids, as the kernel names them, before a
// byte of theirs is read. Main thread only.
#pragma once

#include <sys/types.h>

#include <functional>
#include <memory>
#include <set>
#include <string>

#include "base/fd.h"
#include "base/reason.h"
#include "io/reactor.h"

namespace nodemesh::controller {

// A peer that may speak gRPC to us, and its name for the log.
using Accepted = std::function<void(Fd peer, std::string name)>;

// Non-blocking, mode 0660, group `gid` (-1: unchanged). A socket file that nobody listens on is replaced; one
// in use, or a file that is no socket, is an error.
Result<Fd> listen_unix(const std::string& path, gid_t gid);

class UnixFront final : private io::EventHandler {
 public:
  struct Settings {
    std::string path;
    std::set<uid_t> allowed_uids;
    gid_t gid = static_cast<gid_t>(-1);  // -1: as the process
  };
  // `reactor` outlives it.
  static Result<std::unique_ptr<UnixFront>> start(io::Reactor& reactor, Settings settings, Accepted accepted);
  ~UnixFront();  // removes the socket
  UnixFront(const UnixFront&) = delete;
  UnixFront& operator=(const UnixFront&) = delete;

 private:
  UnixFront(io::Reactor& reactor, Settings settings, Accepted accepted)
      : reactor_(reactor), settings_(std::move(settings)), accepted_(std::move(accepted)) {}
  void on_events(uint32_t) override { accept_all(); }
  void accept_all();

  io::Reactor& reactor_;
  const Settings settings_;
  Accepted accepted_;
  Fd socket_;
  io::Timer accept_again_{[this] { accept_all(); }};
};

}  // namespace nodemesh::controller

// The opener: a child process of the warden that joined the proxy's cgroup and makes every socket the proxy
// uses, so that their memory is charged to the proxy and the BPF programs know them as the agent's own.
// `Opener` is the warden's handle: orders go out and come back in order over a socket pair, the warden's
// thread never waits. A dead opener is replaced at once; its pending orders fail.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "io/reactor.h"
#include "warden/channel.h"
#include "warden/sockets.h"

namespace nodemesh::warden {

class Opener final : private io::EventHandler {
 public:
  using Done = std::move_only_function<void(Result<std::vector<Fd>>)>;
  // Forks the child (the process must have one thread) and waits until it has joined `cgroup` (a cgroup2
  // directory; empty: stay in the warden's).
  static Result<std::unique_ptr<Opener>> start(io::Reactor& reactor, std::string cgroup);
  ~Opener();

  // `done` is called on a later turn, never from inside; not at all if the Opener is destroyed before.
  void open_listeners(const SocketOrder& order, Done done);
  void open_sockets(const SocketOrder& order, SocketKind kind, Done done);
  size_t pending() const { return pending_.size(); }
  pid_t child() const { return child_; }

 private:
  Opener(io::Reactor& reactor, std::string cgroup);
  Result<> spawn();
  void end_child();
  void on_events(uint32_t events) override;
  void send(const SocketOrder& order, uint32_t what, Done done);
  void replace(const Error& why);

  io::Reactor& reactor_;
  const std::string cgroup_;
  pid_t child_ = -1;
  PacketSocket socket_;
  std::deque<Done> pending_;
  Error failure_;
  io::Deferred replacing_;
  io::Timer retry_;
};

}  // namespace nodemesh::warden

// The opener: a child process of the warden that joined the proxy's cgroup and makes every socket the proxy
// uses, so that their memory is charged to the proxy and the BPF programs know them as the agent's own.
// `Opener` is the warden's handle: orders go out and come back in order over a socket pair, the warden's
// thread never waits but for the first start. An opener that died, or owes an answer for 5 s, is replaced;
// its pending orders fail.
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
  // directory; empty: stay in the warden's). A child that owes a word for longer than `limit` is given up.
  static Result<std::unique_ptr<Opener>> start(io::Reactor& reactor, std::string cgroup,
                                               milliseconds limit = seconds(5));
  ~Opener();

  // `done` is called on a later turn, never from inside; not at all if the Opener is destroyed before.
  void open_listeners(const SocketOrder& order, Done done);
  void open_sockets(const SocketOrder& order, SocketKind kind, Done done);
  // Moves the child, and those that come after it, to another cgroup2 directory. After an error, that its
  // successor is born there still holds.
  Result<> move(const std::string& cgroup);
  const std::string& cgroup() const { return cgroup_; }
  size_t pending() const { return pending_.size(); }
  pid_t child() const { return child_; }

 private:
  Opener(io::Reactor& reactor, std::string cgroup, milliseconds limit);
  Result<PacketSocket> spawn();
  Result<> watch(PacketSocket socket);
  Result<> take_ready(const PacketSocket::Packet& packet);
  void respawn();
  void end_child();
  bool reap(int options);
  void on_events(uint32_t events) override;
  void take(PacketSocket::Packet packet);
  void expect_answer();
  void send(const SocketOrder& order, uint32_t what, Done done);
  void replace(const Error& why);

  io::Reactor& reactor_;
  std::string cgroup_;
  const milliseconds limit_;
  pid_t child_ = -1;
  PacketSocket socket_;
  bool ready_ = false;  // the child has said that it is
  std::deque<Done> pending_;
  Error failure_;
  io::Deferred replacing_;
  io::Timer retry_, silence_;
};

}  // namespace nodemesh::warden

// What one worker does when descriptors or memory get short, and with connections on which nothing moves: new
// ones are refused, the largest user loses an idle one first, and both are told. Costs nothing per byte: the
// ends of a connection note the turn in which bytes moved, and this looks at them when it has a reason to.
// Owned by a worker; its thread only.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/clock.h"
#include "base/reason.h"
#include "bpf/abi.h"
#include "io/held.h"
#include "tls/context.h"

namespace nodemesh::proxy {

class Session;
class Worker;
struct Accepted;
struct PodState;

// How long a connection may be silent in both directions; 0: for ever.
struct IdleTimes {
  milliseconds connection = std::chrono::hours(1);  // relayed from socket to socket
  milliseconds stream = std::chrono::minutes(5);    // in a tunnel with a peer that is not one of ours
  // Our own agents end what they have reason to end; an idle stream costs either of them no more than a
  // socket.
  milliseconds of_stream(tls::Alpn peer) const;
};

class Overload {
 public:
  // `held_limit`: bytes that this worker's connections may hold for peers that do not read.
  Overload(Worker& worker, size_t held_limit);

  // Why no further connection of `pod` can be taken now, or NONE. `fd` was just accepted: its number tells
  // how many descriptors the process has open.
  Reason check(const PodState& pod, int fd);
  // Closes what check() refused, with a record that says so.
  void refuse(const PodState& pod, nm_listener kind, Accepted accepted, Reason reason);
  // A listener could not even accept (EMFILE and the like): the connection waits in its backlog.
  void starved();
  // Ends one connection of the pod with most, if that has more than `share`; false when none has.
  bool shed_here(size_t share);
  // Once a second: ends what was silent for too long, and tells what was refused since.
  void tick();

  io::HeldTotal held;

 private:
  void shed(size_t share);
  void end_idle();
  void tell();
  void relieve();
  size_t relieve(PodState& pod, size_t excess);

  Worker& worker_;
  size_t refused_ = 0, shed_ = 0, starved_ = 0;  // since the last tick
  Monotonic::time_point swept_{};
};

}  // namespace nodemesh::proxy

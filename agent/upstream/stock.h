// Fresh sockets of one pod for one worker, both kinds. The proxy may not make sockets in a pod's namespace;
// the warden does, in batches, and this keeps enough at hand that a connection rarely waits: 4, doubling
// while they are used faster than they come, and given back after a minute without use. Worker thread only.
#pragma once

#include <array>
#include <deque>
#include <functional>
#include <vector>

#include "base/clock.h"
#include "base/fd.h"
#include "base/reason.h"
#include "warden/message.h"

namespace nodemesh::upstream {

// Someone who waits for a socket. It must cancel() before it dies.
class SocketWaiter {
 public:
  virtual void on_socket(Fd socket) = 0;
  virtual void on_no_socket(const Error& error) = 0;

 protected:
  ~SocketWaiter() = default;
};

class SocketStock {
 public:
  // Asks the warden for `count` sockets; add() or none() answers, once per call.
  using Ask = std::function<void(warden::SocketKind kind, uint32_t count)>;
  explicit SocketStock(Ask ask) : ask_(std::move(ask)) {}

  // A socket at once, or an empty Fd, and then `waiter` is called later.
  Fd take(warden::SocketKind kind, Monotonic::time_point now, SocketWaiter* waiter);
  void cancel(SocketWaiter& waiter);
  void add(warden::SocketKind kind, std::vector<Fd> sockets);
  void none(warden::SocketKind kind, const Error& error);
  // Closes what has not been used for a minute; call now and then.
  void trim(Monotonic::time_point now);
  void clear(const Error& error);

 private:
  static constexpr uint32_t kFirstBatch = 4;
  struct Kind {
    std::vector<Fd> sockets;
    std::deque<SocketWaiter*> waiters;
    uint32_t batch = kFirstBatch;
    bool asked = false;
    Monotonic::time_point used{};
    Monotonic::time_point refilled{};
  };
  void refill(warden::SocketKind kind, Kind& of);
  Kind& of(warden::SocketKind kind) { return kinds_[static_cast<size_t>(kind)]; }

  Ask ask_;
  std::array<Kind, warden::kSocketKinds> kinds_;
};

}  // namespace nodemesh::upstream

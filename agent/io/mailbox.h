// The way into another thread: closures queued from any thread and run on the reactor's thread in order. The
// only lock between threads; nothing on the per-byte path uses it.
#pragma once

#include <functional>
#include <mutex>
#include <vector>

#include "base/fd.h"
#include "io/reactor.h"

namespace nodemesh::io {

class Mailbox final : private EventHandler {
 public:
  // Created before the reactor's thread runs or on it, and destroyed when it runs no more or on it.
  explicit Mailbox(Reactor& reactor);
  ~Mailbox();
  // Any thread. Work still queued at destruction is destroyed without running.
  void post(std::move_only_function<void()> work);

 private:
  void on_events(uint32_t events) override;

  Reactor& reactor_;
  Fd event_;
  std::mutex mutex_;
  std::vector<std::move_only_function<void()>> queue_;
};

}  // namespace nodemesh::io

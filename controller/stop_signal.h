// SIGTERM and SIGINT as an ordinary event of a reactor, between two others. Made before any thread is
// started, so that all inherit the blocked mask; main thread only.
#pragma once

#include <functional>

#include "base/fd.h"
#include "base/reason.h"
#include "io/reactor.h"

namespace nodemesh::controller {

class StopSignal final : private io::EventHandler {
 public:
  StopSignal(io::Reactor& reactor, std::move_only_function<void()> stop);
  ~StopSignal();
  StopSignal(const StopSignal&) = delete;
  StopSignal& operator=(const StopSignal&) = delete;
  Result<> start() { return reactor_.add(fd_.get(), *this, EPOLLIN); }

 private:
  void on_events(uint32_t) override;
  io::Reactor& reactor_;
  std::move_only_function<void()> stop_;
  Fd fd_;
};

}  // namespace nodemesh::controller

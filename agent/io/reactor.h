// One thread's event loop: descriptors (edge-triggered epoll), timers, and work deferred to the end of a
// turn. Each worker, the control thread and the admin thread own one. Not thread-safe; other threads reach it
// through a Mailbox.
//
// A turn is: wait, handle events, run what was posted, fire due timers, run end-of-turn work. Handlers may
// remove and destroy themselves and each other during a turn: removal only marks the slot, and a removed
// handler gets no further call, not even for events already fetched.
#pragma once

#include <sys/epoll.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "base/clock.h"
#include "base/fd.h"
#include "base/reason.h"

namespace nodemesh::io {

class Reactor;

// What a descriptor's owner implements. `events` holds EPOLLIN, EPOLLOUT, EPOLLRDHUP, EPOLLHUP, EPOLLERR.
class EventHandler {
 public:
  virtual void on_events(uint32_t events) = 0;

 protected:
  ~EventHandler() = default;
};

// A one-shot timer, intrusive: no allocation to arm it, destruction disarms it. Resolution is 1 ms.
class Timer {
 public:
  explicit Timer(std::move_only_function<void()> fire) : fire_(std::move(fire)) {}
  ~Timer() { cancel(); }
  Timer(const Timer&) = delete;
  Timer& operator=(const Timer&) = delete;
  // (Re)arms. The callback may re-arm or destroy the timer.
  void arm(Reactor& reactor, milliseconds after);
  void cancel();
  bool armed() const { return reactor_ != nullptr; }

 private:
  friend class Reactor;
  std::move_only_function<void()> fire_;
  Reactor* reactor_ = nullptr;
  Monotonic::time_point due_{};
  size_t heap_index_ = 0;
};

// Work to run once at the end of the current turn, however often it was asked for. Intrusive like Timer.
class Deferred {
 public:
  explicit Deferred(std::move_only_function<void()> run) : run_(std::move(run)) {}
  ~Deferred();
  Deferred(const Deferred&) = delete;
  Deferred& operator=(const Deferred&) = delete;
  void schedule(Reactor& reactor);

 private:
  friend class Reactor;
  std::move_only_function<void()> run_;
  Reactor* reactor_ = nullptr;
  size_t index_ = 0;
};

class Reactor {
 public:
  Reactor();
  ~Reactor();
  Reactor(const Reactor&) = delete;
  Reactor& operator=(const Reactor&) = delete;

  // Registers `fd` once, edge-triggered, for `events` (default: everything). The caller keeps both alive
  // until remove(). Handler calls come with what epoll reported; read until EAGAIN or a short read.
  Result<> add(int fd, EventHandler& handler, uint32_t events = EPOLLIN | EPOLLOUT | EPOLLRDHUP);
  // Call before closing `fd` or destroying `handler`. With `closing` the kernel's entry is left to close(2).
  void remove(int fd, EventHandler& handler, bool closing = false);

  // Runs until stop(). `run_once` does one turn that waits at most `wait`.
  void run();
  void run_once(milliseconds wait);
  void stop() { stopping_ = true; }
  // Runs `work` in this turn, after events and before timers; from handlers of this thread only.
  void post(std::move_only_function<void()> work) { posted_.push_back(std::move(work)); }
  // Time read once per turn.
  Monotonic::time_point now() const { return now_; }
  // Turns finished so far, for the watchdog; any thread.
  uint64_t turns() const { return __atomic_load_n(&turns_, __ATOMIC_RELAXED); }

 private:
  friend class Timer;
  friend class Deferred;
  void heap_up(size_t index);
  void heap_down(size_t index);
  void heap_remove(Timer& timer);
  void fire_timers();
  void run_deferred();
  int wait_ms(milliseconds limit) const;

  Fd epoll_;
  std::vector<epoll_event> ready_;
  size_t ready_count_ = 0, ready_next_ = 0;
  std::vector<Timer*> timers_;
  std::vector<Deferred*> deferred_;
  std::vector<std::move_only_function<void()>> posted_;
  Monotonic::time_point now_ = Monotonic::now();
  uint64_t turns_ = 0;
  bool stopping_ = false;
};

}  // namespace nodemesh::io

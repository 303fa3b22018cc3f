#include "io/reactor.h"

#include <algorithm>
#include <cerrno>

namespace nodemesh::io {
namespace {
constexpr size_t kEventsPerTurn = 256;
}

void Timer::arm(Reactor& reactor, milliseconds after) {
  cancel();
  reactor_ = &reactor;
  due_ = reactor.now_ + after;
  heap_index_ = reactor.timers_.size();
  reactor.timers_.push_back(this);
  reactor.heap_up(heap_index_);
}

void Timer::cancel() {
  if (reactor_ == nullptr) return;
  reactor_->heap_remove(*this);
  reactor_ = nullptr;
}

Deferred::~Deferred() {
  if (reactor_ != nullptr) reactor_->deferred_[index_] = nullptr;
}

void Deferred::schedule(Reactor& reactor) {
  if (reactor_ != nullptr) return;
  reactor_ = &reactor;
  index_ = reactor.deferred_.size();
  reactor.deferred_.push_back(this);
}

Reactor::Reactor() : epoll_(::epoll_create1(EPOLL_CLOEXEC)), ready_(kEventsPerTurn) {}
Reactor::~Reactor() {
  for (Timer* timer : timers_) timer->reactor_ = nullptr;
  for (Deferred* deferred : deferred_) {
    if (deferred != nullptr) deferred->reactor_ = nullptr;
  }
}

Result<> Reactor::add(int fd, EventHandler& handler, uint32_t events) {
  epoll_event event{};
  event.events = events | EPOLLET;
  event.data.ptr = &handler;
  if (::epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) != 0) return fail_errno("epoll_ctl");
  return {};
}

void Reactor::remove(int fd, EventHandler& handler, bool closing) {
  if (!closing) {
    epoll_event unused{};
    ::epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, &unused);
  }
  for (size_t i = ready_next_; i < ready_count_; ++i) {
    if (ready_[i].data.ptr == &handler) ready_[i].data.ptr = nullptr;
  }
}

void Reactor::run() {
  while (!stopping_) run_once(milliseconds(60'000));
}

int Reactor::wait_ms(milliseconds limit) const {
  if (!posted_.empty() || !deferred_.empty()) return 0;
  if (timers_.empty()) return static_cast<int>(limit.count());
  auto until = timers_.front()->due_ - Monotonic::now();
  auto rounded = std::chrono::ceil<milliseconds>(until);
  return static_cast<int>(std::clamp(rounded, milliseconds(0), limit).count());
}

void Reactor::run_once(milliseconds wait) {
  int count = ::epoll_wait(epoll_.get(), ready_.data(), static_cast<int>(ready_.size()), wait_ms(wait));
  now_ = Monotonic::now();
  ready_count_ = count > 0 ? static_cast<size_t>(count) : 0;
  for (ready_next_ = 0; ready_next_ < ready_count_;) {
    epoll_event event = ready_[ready_next_++];
    if (event.data.ptr != nullptr) static_cast<EventHandler*>(event.data.ptr)->on_events(event.events);
  }
  ready_next_ = ready_count_ = 0;
  if (!posted_.empty()) {
    auto work = std::exchange(posted_, {});
    for (auto& item : work) item();
  }
  fire_timers();
  run_deferred();
  __atomic_store_n(&turns_, turns_ + 1, __ATOMIC_RELAXED);
}

void Reactor::fire_timers() {
  // A timer that its own callback arms for "at once" is due in the next turn, not for ever in this one.
  auto until = now_;
  now_ += Monotonic::duration(1);
  while (!timers_.empty() && timers_.front()->due_ <= until) {
    Timer* timer = timers_.front();
    timer->cancel();
    timer->fire_();
  }
}

// Work that schedules more work (or itself) in the course of this runs in the next turn, which then does not
// wait.
void Reactor::run_deferred() {
  size_t count = deferred_.size();
  for (size_t i = 0; i < count; ++i) {
    Deferred* item = deferred_[i];
    if (item == nullptr) continue;
    deferred_[i] = nullptr;
    item->reactor_ = nullptr;
    item->run_();
  }
  size_t kept = 0;
  for (size_t i = count; i < deferred_.size(); ++i) {
    if (deferred_[i] == nullptr) continue;
    deferred_[kept] = deferred_[i];
    deferred_[kept]->index_ = kept;
    ++kept;
  }
  deferred_.resize(kept);
}

void Reactor::heap_up(size_t index) {
  while (index > 0) {
    size_t parent = (index - 1) / 2;
    if (timers_[parent]->due_ <= timers_[index]->due_) break;
    std::swap(timers_[parent], timers_[index]);
    timers_[parent]->heap_index_ = parent;
    timers_[index]->heap_index_ = index;
    index = parent;
  }
}

void Reactor::heap_down(size_t index) {
  for (;;) {
    size_t least = index;
    for (size_t child = 2 * index + 1; child <= 2 * index + 2 && child < timers_.size(); ++child) {
      if (timers_[child]->due_ < timers_[least]->due_) least = child;
    }
    if (least == index) return;
    std::swap(timers_[least], timers_[index]);
    timers_[least]->heap_index_ = least;
    timers_[index]->heap_index_ = index;
    index = least;
  }
}

void Reactor::heap_remove(Timer& timer) {
  size_t index = timer.heap_index_;
  Timer* last = timers_.back();
  timers_.pop_back();
  if (last == &timer) return;
  timers_[index] = last;
  last->heap_index_ = index;
  heap_up(index);
  heap_down(last->heap_index_);
}

}  // namespace nodemesh::io

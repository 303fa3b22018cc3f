#include "controller/paced_writes.h"

#include <algorithm>

namespace nodemesh::controller {

PacedWrites::PacedWrites(io::Reactor& reactor, const Clock& clock, Settings settings, Write write)
    : reactor_(reactor), clock_(clock), settings_(settings), write_(std::move(write)) {}

void PacedWrites::want(const Key& key) {
  if (busy_ == key) {
    wanted_again_ = true;
    return;
  }
  auto pace = paces_.find(key);
  if (pace == paces_.end() || pace->second.next <= clock_.now()) {
    if (pace != paces_.end()) delayed_.erase({pace->second.next, key});
    ready_.insert(key);
  } else {
    delayed_.insert({pace->second.next, key});
  }
  if (!busy_ && (!timer_.armed() || resting_)) rest();
}

// What it was paced by is kept: an object that is deleted and made again in a loop is still one.
void PacedWrites::forget(const Key& key) {
  ready_.erase(key);
  if (auto pace = paces_.find(key); pace != paces_.end()) delayed_.erase({pace->second.next, key});
  if (busy_ == key) wanted_again_ = false;
}

void PacedWrites::rest() {
  if (ready_.empty() && delayed_.empty()) return;
  auto wait = settings_.gap;
  resting_ = ready_.empty();
  if (resting_)
    wait = std::max(wait, std::chrono::ceil<milliseconds>(delayed_.begin()->first - clock_.now()));
  timer_.arm(reactor_, wait);
}

void PacedWrites::turn() {
  auto now = clock_.now();
  while (!delayed_.empty() && delayed_.begin()->first <= now)
    ready_.insert(delayed_.extract(delayed_.begin()).value().second);
  forget_old_paces(now);
  if (ready_.empty()) return rest();
  auto next = ready_.lower_bound({last_ns_ + '\0', {}, {}});
  if (next == ready_.end()) next = ready_.begin();
  Key key = *next;
  ready_.erase(next);
  last_ns_ = std::get<0>(key);
  begin(key);
}

void PacedWrites::begin(const Key& key) {
  busy_ = key;
  wanted_again_ = false;
  write_(key, [this, alive = std::weak_ptr(alive_), key](Outcome outcome) {
    if (!alive.expired()) on_done(key, outcome);
  });
}

void PacedWrites::on_done(const Key& key, Outcome outcome) {
  busy_.reset();
  bool again = std::exchange(wanted_again_, false) || outcome == Outcome::again;
  if (outcome != Outcome::nothing) {
    auto now = clock_.now();
    Pace& pace = paces_[key];
    // A write that lasted four times its pause is no quarrel.
    bool soon = pace.pause > milliseconds(0) && now < pace.next + 3 * pace.pause;
    pace.pause = soon ? std::min(pace.pause * 2, settings_.longest_pause) : settings_.first_pause;
    pace.next = now + pace.pause;
    writes_ += outcome == Outcome::done;
  }
  if (again) want(key);
  rest();
}

void PacedWrites::forget_old_paces(Monotonic::time_point now) {
  if (!ready_.empty() || !delayed_.empty()) return;
  std::erase_if(paces_, [&](const auto& entry) { return entry.second.next + 3 * entry.second.pause < now; });
}

}  // namespace nodemesh::controller

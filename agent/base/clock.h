// Time as a parameter. Code that waits or measures takes a Clock&, so tests can move time by hand;
// certificates and logs, which speak of calendar time, take the wall side. Thread-safe for reading.
#pragma once

#include <chrono>
#include <cstdint>

namespace nodemesh {

using Monotonic = std::chrono::steady_clock;
using WallClock = std::chrono::system_clock;
using std::chrono::milliseconds;
using std::chrono::seconds;

class Clock {
 public:
  virtual ~Clock() = default;
  virtual Monotonic::time_point now() const { return Monotonic::now(); }
  virtual WallClock::time_point wall() const { return WallClock::now(); }
};

class ManualClock final : public Clock {
 public:
  Monotonic::time_point now() const override { return Monotonic::time_point(elapsed_); }
  WallClock::time_point wall() const override {
    return start_ + std::chrono::duration_cast<WallClock::duration>(elapsed_);
  }
  void advance(Monotonic::duration by) { elapsed_ += by; }

 private:
  Monotonic::duration elapsed_{};
  WallClock::time_point start_{std::chrono::seconds(1'700'000'000)};
};

}  // namespace nodemesh

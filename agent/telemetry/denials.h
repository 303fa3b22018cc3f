// The last denials of the process, for people (`meshctl get connections`, the quickstart's table), and the
// rate at which a worker may log them: a flood of refused connections must not become a flood of log lines.
// Denials may be used from any thread (a lock, taken at most at the rate below per worker); DenialRate
// belongs to one worker.
#pragma once

#include <cstdint>
#include <deque>
#include <mutex>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/reason.h"

namespace nodemesh::telemetry {

struct Denial {
  WallClock::time_point time;
  std::string source;       // identity if proven, else "namespace/workload", else the address
  std::string destination;  // likewise, with the port
  Reason reason = Reason::NONE;
  std::string policy;       // "" unless a policy decided
  uint64_t suppressed = 0;  // denials of the same worker since the one before that were only counted
};

class Denials {
 public:
  static constexpr size_t kKept = 256;
  void add(Denial denial);
  // Newest last.
  std::vector<Denial> recent() const;

 private:
  mutable std::mutex mutex_;
  std::deque<Denial> kept_;
};

// A token bucket: a burst of 20, then 10 per second.
class DenialRate {
 public:
  bool take(Monotonic::time_point now);
  uint64_t suppressed = 0;  // since the last one taken; the caller resets it

 private:
  static constexpr double kBurst = 20, kPerSecond = 10;
  double tokens_ = kBurst;
  Monotonic::time_point last_{};
};

}  // namespace nodemesh::telemetry

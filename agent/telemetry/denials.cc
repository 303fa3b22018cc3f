#include "telemetry/denials.h"

#include <algorithm>

namespace nodemesh::telemetry {

void Denials::add(Denial denial) {
  std::lock_guard lock(mutex_);
  kept_.push_back(std::move(denial));
  if (kept_.size() > kKept) kept_.pop_front();
}

std::vector<Denial> Denials::recent() const {
  std::lock_guard lock(mutex_);
  return {kept_.begin(), kept_.end()};
}

bool DenialRate::take(Monotonic::time_point now) {
  std::chrono::duration<double> passed = now - last_;
  last_ = now;
  tokens_ = std::min(kBurst, tokens_ + passed.count() * kPerSecond);
  if (tokens_ < 1) {
    ++suppressed;
    return false;
  }
  tokens_ -= 1;
  return true;
}

}  // namespace nodemesh::telemetry

#include "telemetry/metrics.h"

#include <algorithm>

#include "telemetry/registry.h"

namespace nodemesh::telemetry {

std::string_view name(Direction direction) {
  return direction == Direction::inbound ? "inbound" : "outbound";
}

std::string_view name(Path path) {
  switch (path) {
    case Path::hbone:
      return "hbone";
    case Path::same_node:
      return "same-node";
    case Path::passthrough:
      return "passthrough";
    case Path::plaintext:
      return "plaintext";
    case Path::direct:
      return "direct";
  }
  return "unknown";
}

std::string_view name(Security security) {
  switch (security) {
    case Security::unknown:
      return "unknown";
    case Security::none:
      return "none";
    case Security::mutual_tls:
      return "mutual_tls";
  }
  return "unknown";
}

void Histogram::observe(std::chrono::nanoseconds elapsed) {
  double value = std::chrono::duration<double>(elapsed).count();
  size_t bucket = 0;
  while (bucket < kBounds.size() && value > kBounds[bucket]) ++bucket;
  buckets_[bucket].add();
  sum_ns_.add(static_cast<uint64_t>(std::max<int64_t>(elapsed.count(), 0)));
}

void Histogram::add_to(std::span<uint64_t, kBounds.size() + 1> buckets, uint64_t& sum_ns) const {
  for (size_t i = 0; i < buckets_.size(); ++i) buckets[i] += buckets_[i].value();
  sum_ns += sum_ns_.value();
}

void SeriesRef::reset() {
  if (!series_) return;
  auto left = series_->refs_.load(std::memory_order_relaxed) - 1;
  if (left == 0)
    series_->last_used_.store(Monotonic::now().time_since_epoch().count(), std::memory_order_relaxed);
  // Release: whoever sees no reference also sees the final counts and the time.
  series_->refs_.store(left, std::memory_order_release);
  series_ = nullptr;
}

// Taking a reference and retiring a set race: the worker announces its reference and then looks whether the
// set is retired; expire() retires the set and then looks for references. With both sequentially consistent
// at least one of the two sees the other, so no connection is ever counted in a set that has left the scrape.
SeriesRef MetricShard::tcp(const TcpLabels& labels) {
  if (metrics_.retirements_.load(std::memory_order_relaxed) != seen_retirements_) drop_retired();
  for (;;) {
    auto found = series_.find(labels);
    std::shared_ptr<LabelSet> set;
    if (found != series_.end()) {
      set = found->second;
    } else {
      set = metrics_.intern(labels);
    }
    TcpSeries* series = set->shards[number_].load(std::memory_order_relaxed);
    if (!series) {
      series = new TcpSeries;  // owned by the set
      set->shards[number_].store(series, std::memory_order_release);
    }
    series->refs_.store(series->refs_.load(std::memory_order_relaxed) + 1, std::memory_order_seq_cst);
    SeriesRef ref(series);
    if (!set->retired.load(std::memory_order_seq_cst)) {
      // The overflow set stands for many labels; remembering each would undo the cap.
      if (found == series_.end() && !set->is_other) series_.emplace(labels, std::move(set));
      return ref;
    }
    ref.reset();
    if (found != series_.end()) series_.erase(found);
  }
}

void MetricShard::drop_retired() {
  seen_retirements_ = metrics_.retirements_.load(std::memory_order_acquire);
  std::erase_if(series_,
                [](const auto& entry) { return entry.second->retired.load(std::memory_order_acquire); });
}

void MetricShard::tls_handshake(TlsSide side, Reason reason, bool resumed, std::chrono::nanoseconds elapsed) {
  handshakes_[static_cast<size_t>(side)][static_cast<size_t>(reason)][resumed].add();
  if (reason == Reason::NONE) handshake_seconds_[static_cast<size_t>(side)].observe(elapsed);
}

void MetricShard::policy_dry_run(std::string_view policy, bool would_allow) {
  metrics_.count_dry_run(policy, would_allow);
}

}  // namespace nodemesh::telemetry

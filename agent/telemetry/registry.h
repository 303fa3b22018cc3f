// All metrics of the process: hands out one MetricShard per worker, holds the values that other threads
// report (configuration, certificates, kernel counters), bounds and expires the TCP series, and renders a
// scrape. Thread-safe; its lock is never taken on the data path except when a worker meets a label set for
// the first time.
//
// Expiry: a label set that no connection holds, that was unused for the expiry time and whose workloads are
// gone is retired; workers drop it when they next look a series up. Until then its counters never go
// backwards.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/clock.h"
#include "telemetry/labels.h"
#include "telemetry/metrics.h"

namespace nodemesh::telemetry {

// One label set and its counters in every shard that met it.
struct LabelSet {
  TcpLabels labels;
  std::string text;  // rendered `{…}`
  std::atomic<bool> retired{false};
  std::vector<std::atomic<TcpSeries*>> shards;  // slot i written once, by shard i; owned
  const bool is_other;                          // the overflow set
  int64_t gone_since = 0;  // steady clock, ns: when expire() first missed a workload of it; 0: all live

  LabelSet(size_t shard_count, bool other) : shards(shard_count), is_other(other) {}
  LabelSet(const LabelSet&) = delete;
  LabelSet& operator=(const LabelSet&) = delete;
  ~LabelSet();
};

struct MetricsOptions {
  size_t max_series = 10'000;
  seconds expiry{300};
  std::string version = "unknown";
  size_t shards = 1;
};

// Where configuration comes from, and how far it can be trusted to be the last.
struct ConfigSource {
  std::string_view origin;             // "folder", "api", "snapshot"; static
  std::optional<seconds> contact_age;  // since the source last confirmed the slowest kind
  size_t troubles = 0;                 // kinds that are not read, or may be stale
  bool snapshot_failed = false;        // a start without the API server has, or would have, nothing
  bool slices_failed = false;          // other nodes do not hear of this node's pods
};

class Metrics {
 public:
  explicit Metrics(MetricsOptions options, const Clock& clock);
  ~Metrics();
  // Shard i belongs to worker i from then on; i < options.shards.
  MetricShard& shard(size_t i) { return *shards_[i]; }

  // Values of other threads; all callable from any thread.
  void set_certificate(std::string_view identity, WallClock::time_point not_after);
  void remove_certificate(std::string_view identity);
  void set_config(uint64_t generation, WallClock::time_point applied, uint64_t rejected_objects);
  void set_config_source(const ConfigSource& source);
  // Totals as the kernel counts them, summed over CPUs: by nm_reason, by nm_counter.
  void set_kernel(std::span<const uint64_t> drops, std::span<const uint64_t> events);

  // Retires series. `is_live` says whether a workload still exists; call it every half minute or so, any
  // thread. Returns how many were retired.
  size_t expire(const std::function<bool(const WorkloadLabels&)>& is_live);

  // The whole exposition (text format 0.0.4), the process's own figures included.
  std::string render() const;
  size_t series() const;  // label sets that exist now

 private:
  friend class MetricShard;
  std::shared_ptr<LabelSet> intern(const TcpLabels& labels);
  void count_dry_run(std::string_view policy, bool would_allow);
  static bool in_use(const LabelSet& set, int64_t idle_since);
  friend class Exposition;

  const MetricsOptions options_;
  const Clock& clock_;
  std::atomic<uint64_t> retirements_{0};

  mutable std::mutex mutex_;
  std::unordered_map<std::string_view, std::shared_ptr<LabelSet>>
      sets_;                                        // by LabelSet::text, which the key views
  std::array<std::shared_ptr<LabelSet>, 2> other_;  // by reporter
  uint64_t overflow_ = 0;
  std::map<std::string, int64_t, std::less<>> certificates_;
  std::map<std::pair<std::string, bool>, uint64_t> dry_runs_;
  ConfigSource source_;
  uint64_t generation_ = 0, rejected_ = 0;
  int64_t applied_ = 0;  // unix seconds; 0: never
  std::vector<uint64_t> kernel_drops_, kernel_events_;
  std::vector<std::unique_ptr<MetricShard>> shards_;
};

}  // namespace nodemesh::telemetry

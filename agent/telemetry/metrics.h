// Counters of one worker. A MetricShard has one writer, the worker's thread, and one reader, the admin
// thread, which reads with relaxed atomics: nothing on the data path locks or waits. Shards are made and
// owned by Metrics (registry.h), which also merges them for a scrape. The only lock is taken when a worker
// meets a label set for the first time.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string_view>
#include <unordered_map>
#include <utility>

#include "base/reason.h"
#include "telemetry/labels.h"

namespace nodemesh::telemetry {

class Metrics;
struct LabelSet;

enum class Direction : uint8_t { inbound, outbound };
// How a connection travelled: inside HBONE, by the same-node shortcut, untouched to outside the mesh,
// accepted from a plaintext peer, or by the kernel without the proxy.
enum class Path : uint8_t { hbone, same_node, passthrough, plaintext, direct };
enum class TlsSide : uint8_t { client, server };
inline constexpr size_t kDirections = 2, kPaths = 5, kReasons = NM_REASON_COUNT;

std::string_view name(Direction direction);
std::string_view name(Path path);  // "hbone", "same-node", "passthrough", "plaintext", "direct"
std::string_view name(Security security);

// Monotonic count with a single writer: a plain load and store, no locked instruction.
class Counter {
 public:
  void add(uint64_t n = 1) {
    value_.store(value_.load(std::memory_order_relaxed) + n, std::memory_order_relaxed);
  }
  uint64_t value() const { return value_.load(std::memory_order_relaxed); }

 private:
  std::atomic<uint64_t> value_{0};
};

// A number that goes both ways, single writer.
class Gauge {
 public:
  void add(int64_t n) { value_.store(value_.load(std::memory_order_relaxed) + n, std::memory_order_relaxed); }
  void set(int64_t n) { value_.store(n, std::memory_order_relaxed); }
  int64_t value() const { return value_.load(std::memory_order_relaxed); }

 private:
  std::atomic<int64_t> value_{0};
};

// One more in a gauge while it lives. Owner's thread only; the gauge outlives it.
class Counted {
 public:
  Counted() = default;
  explicit Counted(Gauge& gauge) : gauge_(&gauge) { gauge_->add(1); }
  Counted(Counted&& other) noexcept : gauge_(std::exchange(other.gauge_, nullptr)) {}
  Counted& operator=(Counted&& other) noexcept {
    std::swap(gauge_, other.gauge_);
    return *this;
  }
  ~Counted() {
    if (gauge_ != nullptr) gauge_->add(-1);
  }

 private:
  Gauge* gauge_ = nullptr;
};

// A fixed-bucket latency histogram, single writer.
class Histogram {
 public:
  static constexpr std::array<double, 14> kBounds = {0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05,
                                                     0.1,    0.25,  0.5,    1,     2.5,  5,     10};
  void observe(std::chrono::nanoseconds elapsed);
  // Adds this shard's buckets (not cumulative; the last is +Inf) and sum in nanoseconds to the reader's
  // totals.
  void add_to(std::span<uint64_t, kBounds.size() + 1> buckets, uint64_t& sum_ns) const;

 private:
  std::array<Counter, kBounds.size() + 1> buckets_;
  Counter sum_ns_;
};

// One worker's share of one Istio TCP series. As in Envoy and ztunnel, and alike for both reporters, `sent`
// is what went to the client ("during response") and `received` what came from it ("during request").
struct TcpSeries {
  Counter opened, closed, failed, sent, received;

 private:
  friend class MetricShard;
  friend class SeriesRef;
  friend class Metrics;
  std::atomic<uint32_t> refs_{0};      // single writer; read by expiry
  std::atomic<int64_t> last_used_{0};  // steady clock, ns; set when the last reference goes
};

// Holds a series while a connection uses it, so that it does not expire. Owner's thread only. Movable, 8
// bytes.
class SeriesRef {
 public:
  SeriesRef() = default;
  SeriesRef(SeriesRef&& other) noexcept : series_(std::exchange(other.series_, nullptr)) {}
  SeriesRef& operator=(SeriesRef&& other) noexcept {
    if (this != &other) reset(), series_ = std::exchange(other.series_, nullptr);
    return *this;
  }
  ~SeriesRef() { reset(); }
  void reset();
  TcpSeries* operator->() const { return series_; }
  TcpSeries* get() const { return series_; }
  explicit operator bool() const { return series_ != nullptr; }

 private:
  friend class MetricShard;
  explicit SeriesRef(TcpSeries* series) : series_(series) {}
  TcpSeries* series_ = nullptr;
};

class MetricShard {
 public:
  // Finds or creates the series; never null. At the cardinality cap this is the shared series labelled
  // "other". Owner's thread. The shard must outlive the reference.
  SeriesRef tcp(const TcpLabels& labels);

  // nodemesh_connections_open{direction,path}: +1 and -1. nodemesh_connections_total counts at the end, with
  // its reason. Record does both for every connection; call them only for what has no Record.
  Gauge& open(Direction direction, Path path) { return open_[index(direction, path)]; }
  Counter& total(Direction direction, Path path, Reason reason) {
    return total_[index(direction, path)][static_cast<size_t>(reason)];
  }
  // One TLS handshake ended. `reason` NONE is success; `elapsed` counts only then.
  void tls_handshake(TlsSide side, Reason reason, bool resumed, std::chrono::nanoseconds elapsed);
  // An AuthorizationPolicy in dry-run mode gave a verdict. `policy` is "namespace/name"; takes a lock, so not
  // for policies in force.
  void policy_dry_run(std::string_view policy, bool would_allow);
  Counter denials_unlogged;    // denials above the log's rate
  Counter accepts_starved;     // accept() failed for lack of descriptors; the connections wait
  Counter access_log_dropped;  // access log lines lost because the log's reader is slow
  Gauge tunnels_open;          // HBONE connections, both roles
  Gauge tunnel_streams_open;   // CONNECT streams on them

 private:
  friend class Metrics;
  friend class Exposition;
  MetricShard(Metrics& metrics, size_t number) : metrics_(metrics), number_(number) {}
  static size_t index(Direction direction, Path path) {
    return static_cast<size_t>(direction) * kPaths + static_cast<size_t>(path);
  }
  void drop_retired();

  Metrics& metrics_;
  const size_t number_;
  uint64_t seen_retirements_ = 0;
  std::unordered_map<TcpLabels, std::shared_ptr<LabelSet>, TcpLabelsHash> series_;
  std::array<Gauge, kDirections * kPaths> open_;
  std::array<std::array<Counter, kReasons>, kDirections * kPaths> total_;
  std::array<std::array<std::array<Counter, 2>, kReasons>, 2> handshakes_;  // side, reason, resumed
  std::array<Histogram, 2> handshake_seconds_;
};

}  // namespace nodemesh::telemetry

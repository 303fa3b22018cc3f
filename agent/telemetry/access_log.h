// The access log: one line per completed connection, in Envoy's default text order or as JSON. AccessLog is
// the process's sink, owned by and running on the admin thread; each worker formats lines into its own
// AccessLogShard and hands them over in chunks, bounded, so a slow disk or pipe never blocks a worker: lines
// that do not fit are counted in nodemesh_access_log_dropped_total. Off until configure() names a file.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <string>
#include <string_view>

#include "base/clock.h"
#include "base/fd.h"
#include "base/reason.h"
#include "io/mailbox.h"
#include "io/reactor.h"

namespace nodemesh::telemetry {

class Record;
class MetricShard;

enum class LogFormat : int { off, text, json };

// Appends one line, ended by a newline and with no other byte outside printable ASCII, whatever the peers
// sent. `node` is written into JSON lines; `now` ends the duration.
void format_text(const Record& record, Monotonic::time_point now, std::string& out);
void format_json(const Record& record, Monotonic::time_point now, std::string& out);

class AccessLog final : private io::EventHandler {
 public:
  static constexpr size_t kMaxPending = 4 << 20;  // bytes waiting for a slow reader, all workers together

  // On the admin thread, whose reactor it is; outlives the shards.
  explicit AccessLog(io::Reactor& admin);
  ~AccessLog();

  // Any thread. MeshConfig's accessLogFile ("" switches off, "/dev/stdout" is usual) and accessLogEncoding. A
  // file that cannot be opened is reported in the log and leaves the access log off. Naming the file again
  // reopens it.
  void configure(std::string path, LogFormat format);
  // What workers should write now; any thread, relaxed.
  LogFormat format() const { return static_cast<LogFormat>(format_.load(std::memory_order_relaxed)); }

 private:
  friend class AccessLogShard;
  // Any thread; false when too much is waiting already, and then the chunk is lost.
  bool submit(std::string chunk);
  void open(const std::string& path, LogFormat format);
  void close_file();
  void write_pending();
  void on_events(uint32_t events) override;

  io::Reactor& reactor_;
  io::Mailbox mailbox_;
  std::atomic<int> format_{static_cast<int>(LogFormat::off)};
  std::atomic<size_t> pending_bytes_{0};
  std::deque<std::string> pending_;
  size_t written_ = 0;  // of the first chunk
  Fd file_;
  bool polled_ = false;
};

class AccessLogShard {
 public:
  // On the worker's thread, like every call.
  AccessLogShard(AccessLog& log, MetricShard& metrics, io::Reactor& reactor);
  bool enabled() const { return log_.format() != LogFormat::off; }
  void write(const Record& record, Monotonic::time_point now);
  // Hands over what is buffered; happens by itself within 20 ms and at 32 KiB.
  void flush();

 private:
  AccessLog& log_;
  MetricShard& metrics_;
  io::Reactor& reactor_;
  io::Timer timer_;
  std::string buffer_;
  uint64_t lines_ = 0;
};

}  // namespace nodemesh::telemetry

// What one worker needs to record connections: its metrics, its access log buffer, the recent denials and the
// list of its open records (for /connections and for closing what a new policy denies). One per worker, on
// its thread.
#pragma once

#include <cstdint>

#include "base/clock.h"
#include "telemetry/access_log.h"
#include "telemetry/denials.h"
#include "telemetry/metrics.h"
#include "telemetry/record.h"

namespace nodemesh::telemetry {

class Recorder {
 public:
  // `worker` numbers the worker; ids of its records start there. Everything outlives the recorder.
  Recorder(uint16_t worker, const Clock& clock, MetricShard& metrics, AccessLog& log, Denials& denials,
           io::Reactor& reactor)
      : metrics(metrics),
        access_log(log, metrics, reactor),
        denials(denials),
        clock(clock),
        next_id_(static_cast<uint64_t>(worker) << 48 | 1) {}

  // Calls `visit(Record&)` for every open record, oldest first. `visit` may complete or destroy the one it is
  // given.
  template <class Visit>
  void for_each_open(Visit&& visit) {
    for (RecordLink* link = open_.next; link != &open_;) {
      RecordLink* next = link->next;
      visit(static_cast<Record&>(*link));
      link = next;
    }
  }

  MetricShard& metrics;
  AccessLogShard access_log;
  Denials& denials;
  const Clock& clock;

 private:
  friend class Record;
  uint64_t next_id_;
  RecordLink open_;
  DenialRate rate_;
};

}  // namespace nodemesh::telemetry

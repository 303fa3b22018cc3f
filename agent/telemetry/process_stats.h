// What Prometheus clients report of their own process, from /proc/self and getrusage. Any thread. A figure
// that cannot be read is 0.
#pragma once

#include <cstdint>

namespace nodemesh::telemetry {

struct ProcessStats {
  int64_t open_fds = 0, max_fds = 0, resident_bytes = 0;
  double cpu_seconds = 0, start_seconds = 0;  // the second since the Unix epoch
};

ProcessStats read_process_stats();

}  // namespace nodemesh::telemetry

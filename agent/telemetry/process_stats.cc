#include "telemetry/process_stats.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <string>

#include "base/fd.h"

namespace nodemesh::telemetry {
namespace {

std::string read_small(const char* path) {
  Fd fd(::open(path, O_RDONLY | O_CLOEXEC));
  char text[8192];
  ssize_t got = fd ? ::read(fd.get(), text, sizeof text) : 0;
  return {text, got > 0 ? static_cast<size_t>(got) : 0};
}

int64_t count_fds() {
  DIR* dir = ::opendir("/proc/self/fd");
  if (!dir) return 0;
  int64_t count = -3;  // ".", ".." and the directory itself
  while (::readdir(dir)) ++count;
  ::closedir(dir);
  return count;
}

// Field 22 of /proc/self/stat, counted after the command's closing parenthesis: the command may hold
// anything.
double start_ticks() {
  auto stat = read_small("/proc/self/stat");
  auto close = stat.rfind(')');
  if (close == stat.npos) return 0;
  const char* at = stat.c_str() + close + 1;
  for (int field = 3; field < 22 && at; ++field) at = std::strchr(at + 1, ' ');
  return at ? std::strtod(at, nullptr) : 0;
}

double boot_seconds() {
  auto stat = read_small("/proc/stat");
  auto at = stat.find("\nbtime ");
  // On machines with very many cores btime lies beyond the first read.
  if (at != stat.npos) return std::strtod(stat.c_str() + at + 7, nullptr);
  timespec wall{}, up{};
  clock_gettime(CLOCK_REALTIME, &wall);
  clock_gettime(CLOCK_BOOTTIME, &up);
  return static_cast<double>(wall.tv_sec - up.tv_sec);
}

}  // namespace

ProcessStats read_process_stats() {
  ProcessStats stats;
  stats.open_fds = count_fds();
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) == 0) stats.max_fds = static_cast<int64_t>(limit.rlim_cur);
  auto statm = read_small("/proc/self/statm");
  if (auto space = statm.find(' '); space != statm.npos) {
    stats.resident_bytes = std::strtoll(statm.c_str() + space, nullptr, 10) * sysconf(_SC_PAGESIZE);
  }
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  auto to_seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + static_cast<double>(t.tv_usec) / 1e6;
  };
  stats.cpu_seconds = to_seconds(usage.ru_utime) + to_seconds(usage.ru_stime);
  stats.start_seconds = boot_seconds() + start_ticks() / static_cast<double>(sysconf(_SC_CLK_TCK));
  return stats;
}

}  // namespace nodemesh::telemetry

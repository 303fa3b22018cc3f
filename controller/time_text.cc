#include "controller/time_text.h"

#include <ctime>

#include <fmt/format.h>

namespace nodemesh::controller {

std::string write_time(WallClock::time_point time) {
  auto whole = std::chrono::floor<seconds>(time);
  auto micros = std::chrono::duration_cast<std::chrono::microseconds>(time - whole).count();
  std::time_t since = WallClock::to_time_t(whole);
  std::tm parts{};
  ::gmtime_r(&since, &parts);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S", &parts);
  return fmt::format("{}.{:06}Z", text, micros);
}

std::optional<WallClock::time_point> read_time(std::string_view text) {
  std::string copy(text);
  std::tm parts{};
  const char* end = ::strptime(copy.c_str(), "%Y-%m-%dT%H:%M:%S", &parts);
  if (end == nullptr) return std::nullopt;
  if (*end == '.') {
    do ++end;
    while (*end >= '0' && *end <= '9');
  }
  if (std::string_view(end) != "Z") return std::nullopt;
  return WallClock::from_time_t(::timegm(&parts));
}

}  // namespace nodemesh::controller

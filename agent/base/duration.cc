#include "base/duration.h"

#include <charconv>

#include <fmt/format.h>

namespace nodemesh {
namespace {

constexpr milliseconds kLongest = std::chrono::days(10'000);

milliseconds unit_of(std::string_view name) {
  if (name == "ms") return milliseconds(1);
  if (name == "s") return seconds(1);
  if (name == "m") return std::chrono::minutes(1);
  if (name == "h") return std::chrono::hours(1);
  if (name == "d") return std::chrono::days(1);
  return milliseconds(0);
}

}  // namespace

Result<milliseconds> parse_duration(std::string_view text) {
  int64_t number = 0;
  auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  auto unit = unit_of(text.substr(static_cast<size_t>(end - text.data())));
  if (error != std::errc{} || unit.count() == 0)
    return fail(fmt::format("'{}' is not a duration: write for example 30s, 15m, 24h or 30d", text));
  if (number <= 0 || number > kLongest / unit)
    return fail(fmt::format("'{}' must be more than 0 and at most {}d", text,
                            std::chrono::duration_cast<std::chrono::days>(kLongest).count()));
  return number * unit;
}

}  // namespace nodemesh

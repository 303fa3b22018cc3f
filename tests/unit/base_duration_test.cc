#include <doctest/doctest.h>

#include "base/duration.h"

using namespace nodemesh;

TEST_CASE("a duration is a number and a unit") {
  CHECK(parse_duration("500ms") == milliseconds(500));
  CHECK(parse_duration("90s") == seconds(90));
  CHECK(parse_duration("15m") == std::chrono::minutes(15));
  CHECK(parse_duration("24h") == std::chrono::hours(24));
  CHECK(parse_duration("10000d") == std::chrono::days(10'000));
}

TEST_CASE(
    "what is no duration, or one that no time can bear, is refused with its text and a way to write it") {
  for (const char* text : {"", "s", "30", "1.5h", "1 h", "1h30m", "1w", "-", "99999999999999999999s"}) {
    auto refused = parse_duration(text);
    REQUIRE(!refused);
    CHECK(refused.error().message ==
          "'" + std::string(text) + "' is not a duration: write for example 30s, 15m, 24h or 30d");
  }
  for (const char* text : {"0s", "-5m", "10001d", "9223372036854775807h"}) {
    auto refused = parse_duration(text);
    REQUIRE(!refused);
    CHECK(refused.error().message == "'" + std::string(text) + "' must be more than 0 and at most 10000d");
  }
}

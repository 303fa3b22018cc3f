// Durations as people write them in flags and requests. Pure; any thread.
#pragma once

#include <string_view>

#include "base/clock.h"
#include "base/reason.h"

namespace nodemesh {

// A whole number and one of ms, s, m, h and d: "500ms", "90s", "24h". More than 0 and at most ten thousand
// days, so that it can be added to any time. The error quotes the text and says how to write one.
Result<milliseconds> parse_duration(std::string_view text);

}  // namespace nodemesh

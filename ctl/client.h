// A small blocking HTTP/1.1 client for the agents' admin ports, with a deadline over everything. One request
// per connection. Any thread.
#pragma once

#include <string>
#include <string_view>

#include "base/clock.h"
#include "base/reason.h"

namespace nodemesh::ctl {

struct HttpResponse {
  int status = 0;
  std::string body;
};

// `target` is "unix:/path" or "host:port" with a numeric host or "localhost". `path` includes the query,
// encoded. The error says why the agent could not be reached; its Reason is CONNECT_FAILED, or INTERNAL for
// an answer that is no HTTP.
Result<HttpResponse> http(std::string_view target, std::string_view method, std::string_view path,
                          milliseconds deadline = seconds(10));

constexpr size_t kMaxAnswer = 256 << 20;

// The request itself, for an agent's admin port; a body is never sent.
std::string request_text(std::string_view method, std::string_view path);
// Reads a whole answer, as far as it has come. nullopt-like: an error if malformed, status 0 while
// incomplete.
Result<HttpResponse> parse_response(std::string_view bytes, bool at_end);

}  // namespace nodemesh::ctl

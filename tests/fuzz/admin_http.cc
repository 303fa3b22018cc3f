// The admin ports' request parser: whatever comes, in whatever pieces, it must answer the same as for the
// whole, keep no more than its limit, and end.
#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include "admin/http_request.h"

using nodemesh::admin::Request;
using nodemesh::admin::RequestParser;
using Status = RequestParser::Status;

namespace {

std::string parse(std::string_view bytes, size_t step) {
  RequestParser parser;
  std::string seen;
  for (size_t at = 0; at < bytes.size(); at += step) {
    parser.feed(bytes.substr(at, step));
    for (;;) {
      Request request;
      auto status = parser.next(request);
      if (status == Status::bad) return seen + std::to_string(parser.status());
      if (status == Status::need_more) break;
      if (request.path.empty() || request.path[0] != '/') std::abort();
      seen += request.method + request.path + "?" + request.query + request.host +
              (request.keep_alive ? "k" : "c");
      seen += request.parameter("level").value_or("-");
    }
    if (parser.buffered() > RequestParser::kMaxHead + step) std::abort();
  }
  return seen;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::string_view bytes(reinterpret_cast<const char*>(data), size);
  auto whole = parse(bytes, size ? size : 1);
  if (parse(bytes, 1) != whole || parse(bytes, 7) != whole) std::abort();
  return 0;
}

// Bytes of an API server through all that reads them as JSON: whole, as a list page, as lines of a watch cut
// where the input says. Neither crashes nor throws; what is accepted becomes an object.
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "kube/api_client.h"
#include "kube/json.h"

using namespace nodemesh::kube;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::string_view text(reinterpret_cast<const char*>(data), size);
  if (auto page = parse_list_page(text)) {
    for (auto& item : page->items) (void)make_api_object(std::move(item), "Pod", "v1")->named;
  }
  if (auto tree = parse_json(text, 1000)) (void)make_api_object(std::move(*tree), "Pod", "v1")->origin();
  (void)failure_text(500, text);
  LineSplitter lines(200);
  size_t step = size > 0 ? data[0] % 64 + 1u : 1;
  for (size_t at = 0; at < size; at += step) {
    lines.feed(text.substr(at, step), [](std::string_view line) {
      if (line.empty() || line.size() > 200 || line.find('\n') != line.npos) std::abort();
      auto event = parse_watch_event(line);
      if (event) (void)make_api_object(std::move(event->object), "Pod", "v1")->named;
      return event.has_value() || !event.error().broken;
    });
  }
  return 0;
}

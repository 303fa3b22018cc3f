// Bytes of a server into the HTTP/1.1 response reader, whole and in pieces: it neither crashes nor reads in
// pieces what it refuses whole, and body and header stay within what was sent.
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "kube/h1_response.h"

using namespace nodemesh;
using namespace nodemesh::kube;

namespace {

struct Heard final : H1Response::Reader {
  void on_head(const http::HeaderBlock& head) override {
    if (head.status < 200 || head.used > http::H1Limits{}.fields) std::abort();
    all += std::to_string(head.status) + "\n";
  }
  void on_body(std::string_view bytes) override { all += bytes; }
  std::string all;
};

std::string read(std::string_view text, size_t step) {
  Heard heard;
  H1Response response(heard);
  for (size_t at = 0; at < text.size() && !response.done(); at += step) {
    auto piece = text.substr(at, step);
    auto used = response.feed(piece);
    if (!used) return heard.all + "\nrefused";
    if (*used > piece.size() || (*used < piece.size() && !response.done())) std::abort();
  }
  return heard.all + (response.done() ? "\ndone" : "\nmore");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::string_view text(reinterpret_cast<const char*>(data), size);
  if (read(text, size + 1) != read(text, 1) || read(text, size + 1) != read(text, 7)) std::abort();
  return 0;
}

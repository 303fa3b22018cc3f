// Bytes of a pod into the HTTP/1 reader, as requests and as responses, whole and in pieces: the same comes of
// them, and what is told to be a message could be written again and read the same.
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "http/h1_reader.h"

using namespace nodemesh::http;

namespace {

const H1Limits kLimits{.head_bytes = 4096, .request_line_bytes = 512, .fields = 20};

struct Heard final : H1Owner {
  void on_head(HeaderBlock& head, bool end) override {
    all += head.method + ' ' + head.scheme + ' ' + head.authority + ' ' + head.path + ' ' + head.protocol +
           ' ' + std::to_string(head.status) + (end ? ".\n" : "\n");
    note(head);
  }
  void on_body(std::span<const uint8_t> bytes) override {
    body.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  }
  void on_trailers(HeaderBlock& trailers) override { note(trailers); }
  void on_end() override { all += "end\n"; }

  void note(const HeaderBlock& block) {
    if (block.used > kLimits.fields) std::abort();
    for (size_t i = 0; i < block.used; ++i) {
      const auto& [name, value] = block.fields[i];
      if (name.empty() || name == "transfer-encoding" || name == "connection") std::abort();
      if (name == "host" && !block.method.empty()) std::abort();
      for (char byte : name)
        if (byte <= ' ' || byte == ':' || (byte >= 'A' && byte <= 'Z')) std::abort();
      for (char byte : value)
        if (byte == '\r' || byte == '\n' || byte == '\0') std::abort();
      all += name + '=' + value + '\n';
    }
  }
  std::string all, body;
};

std::string read(H1Reader::Role role, std::string_view text, size_t step) {
  Heard heard;
  H1Reader reader(role, heard, kLimits);
  for (size_t at = 0; at < text.size();) {
    auto piece = text.substr(at, step);
    auto used = reader.feed({reinterpret_cast<const uint8_t*>(piece.data()), piece.size()});
    // What came before a refusal, and which of several faults is named, depend on where the pieces end.
    if (!used) return "refused";
    if (*used > piece.size() || (*used < piece.size() && !reader.done())) std::abort();
    if (reader.held() > 3 * (kLimits.head_bytes + step + 64)) std::abort();
    at += *used;
    if (!reader.done()) continue;
    if (!reader.keep_alive()) break;
    reader.next();
  }
  return heard.all + heard.body + (reader.eof() ? "\nwhole" : "\ntruncated");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::string_view text(reinterpret_cast<const char*>(data), size);
  for (auto role : {H1Reader::Role::requests, H1Reader::Role::responses}) {
    auto whole = read(role, text, size + 1);
    if (whole != read(role, text, 1) || whole != read(role, text, 7)) std::abort();
  }
  return 0;
}

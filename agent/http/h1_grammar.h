// The words of HTTP/1 (RFC 9110 5, RFC 9112): which bytes may stand where, and what concerns two neighbours
// only. Pure functions of text, for h1_reader.cc.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <iterator>
#include <string>
#include <string_view>

namespace nodemesh::http {

// Classes of bytes.
enum : uint8_t { kToken = 1, kValue = 2, kTarget = 4, kAuthority = 8 };

constexpr std::array<uint8_t, 256> make_classes() {
  std::array<uint8_t, 256> classes{};
  auto add = [&](std::string_view bytes, uint8_t bits) {
    for (unsigned char byte : bytes) classes[byte] |= bits;
  };
  for (int byte = 0x20; byte < 256; ++byte)
    if (byte != 0x7f) classes[byte] |= kValue;
  classes['\t'] |= kValue;
  for (int byte = 0x21; byte < 0x7f; ++byte)
    if (byte != '#') classes[byte] |= kTarget;
  for (int byte = '0'; byte <= '9'; ++byte) classes[byte] |= kToken | kAuthority;
  for (int byte = 'a'; byte <= 'z'; ++byte) classes[byte] |= kToken | kAuthority;
  for (int byte = 'A'; byte <= 'Z'; ++byte) classes[byte] |= kToken | kAuthority;
  add("!#$%&'*+-.^_`|~", kToken);
  add("-._~!$&'()*+;=:[]%", kAuthority);  // no comma: that is two hosts
  return classes;
}
inline constexpr auto kClasses = make_classes();

inline bool all(std::string_view text, uint8_t bits) {
  return std::ranges::all_of(text, [&](unsigned char byte) { return (kClasses[byte] & bits) != 0; });
}

inline char lower(char byte) {
  return byte >= 'A' && byte <= 'Z' ? static_cast<char>(byte + 32) : byte;
}

inline void to_lower(std::string& text) {
  for (char& byte : text) byte = lower(byte);
}

inline bool same_word(std::string_view text, std::string_view lower_case) {
  return std::ranges::equal(text, lower_case, {}, lower);
}

inline std::string_view trimmed(std::string_view text) {
  auto space = [](char byte) { return byte == ' ' || byte == '\t'; };
  while (!text.empty() && space(text.front())) text.remove_prefix(1);
  while (!text.empty() && space(text.back())) text.remove_suffix(1);
  return text;
}

// Calls `with` for each element of a comma-separated list (RFC 9110 5.6.1) until it says false.
bool each_element(std::string_view list, auto&& with) {
  while (!list.empty()) {
    size_t comma = std::min(list.find(','), list.size());
    auto element = trimmed(list.substr(0, comma));
    if (!element.empty() && !with(element)) return false;
    list.remove_prefix(std::min(comma + 1, list.size()));
  }
  return true;
}

// What concerns two neighbours only, besides what Connection names.
inline bool hop_by_hop(std::string_view name) {
  constexpr std::string_view kNames[] = {"connection", "keep-alive",        "proxy-connection", "te",
                                         "upgrade",    "transfer-encoding", "http2-settings"};
  return std::ranges::find(kNames, name) != std::end(kNames);
}

// Fields that say how to read or route a message have no place after its body (RFC 9110 6.5.1).
inline bool forbidden_trailer(std::string_view name) {
  constexpr std::string_view kNames[] = {"content-length", "host", "trailer", "authorization", "expect"};
  return hop_by_hop(name) || std::ranges::find(kNames, name) != std::end(kNames);
}

}  // namespace nodemesh::http

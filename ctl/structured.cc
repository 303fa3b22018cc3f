#include "ctl/structured.h"

#include <algorithm>
#include <string_view>

#include <nlohmann/json.hpp>

namespace nodemesh::ctl {
namespace {

using nlohmann::json;

std::string scalar_json(const json& value) {
  return value.dump(-1, ' ', true, json::error_handler_t::replace);
}

// Bare only what no YAML 1.1 or 1.2 reader takes for another type; the rest as JSON strings, which are YAML
// too.
std::string scalar(const json& value) {
  if (!value.is_string()) return scalar_json(value);
  const auto& text = value.get_ref<const std::string&>();
  auto letter = [](char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); };
  auto bare = [&](char c) {
    return letter(c) || (c >= '0' && c <= '9') || c == '_' || c == '-' || c == '.' || c == '/';
  };
  static constexpr std::string_view kWords[] = {"y", "n", "yes", "no", "on", "off", "true", "false", "null"};
  std::string lower = text;
  std::ranges::transform(lower, lower.begin(),
                         [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; });
  bool safe = !text.empty() && letter(text[0]) && std::ranges::all_of(text, bare) &&
              std::ranges::find(kWords, lower) == std::end(kWords);
  return safe ? text : scalar_json(value);
}

void emit(std::string& out, const json& value, size_t indent) {
  std::string pad(indent, ' ');
  if (!value.is_structured() || value.empty()) {
    out += pad + scalar(value) + "\n";
    return;
  }
  bool list = value.is_array();
  for (const auto& [key, item] : value.items()) {
    bool nested = item.is_structured() && !item.empty();
    if (!list) {
      out += pad + scalar(json(key)) + ":";
      out += nested ? "\n" : " " + scalar(item) + "\n";
      if (nested) emit(out, item, indent + (item.is_array() ? 0 : 2));
      continue;
    }
    std::string block;
    emit(block, item, indent + 2);
    block[indent] = '-';  // "- " takes the place of the first line's indentation
    out += block;
  }
}

}  // namespace

std::string to_json_text(const json& value) {
  return value.dump(2, ' ', true, json::error_handler_t::replace) + "\n";
}

std::string to_yaml_text(const json& value) {
  std::string out;
  emit(out, value, 0);
  return out;
}

}  // namespace nodemesh::ctl

// Reading JSON that anybody may have written: what is absent or of another type is null, "", 0, false or
// empty, never an error. References live as long as the value that was read. Pure.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

namespace nodemesh::ctl {

// What an API server or an agent answers; discarded if it is no JSON, or nested deeper than any object of
// Kubernetes: what reads it recurses.
nlohmann::json parse_json(std::string_view text);

inline const nlohmann::json& json_at(const nlohmann::json& from) {
  return from;
}
// By keys, one a level: json_at(pod, "metadata", "labels", "istio.io/dataplane-mode").
template <class... More>
const nlohmann::json& json_at(const nlohmann::json& from, std::string_view key, More... more) {
  static const nlohmann::json kNothing;
  if (!from.is_object()) return kNothing;
  auto found = from.find(key);
  return found == from.end() ? kNothing : json_at(*found, more...);
}

template <class... Keys>
std::string text_of(const nlohmann::json& from, Keys... keys) {
  const nlohmann::json& value = json_at(from, keys...);
  return value.is_string() ? value.get<std::string>() : std::string();
}

template <class... Keys>
int64_t number_of(const nlohmann::json& from, Keys... keys) {
  const nlohmann::json& value = json_at(from, keys...);
  return value.is_number_integer() ? value.get<int64_t>() : 0;
}

template <class... Keys>
bool flag_of(const nlohmann::json& from, Keys... keys) {
  const nlohmann::json& value = json_at(from, keys...);
  return value.is_boolean() && value.get<bool>();
}

// The items of an array; none of anything else.
template <class... Keys>
const std::vector<nlohmann::json>& items_of(const nlohmann::json& from, Keys... keys) {
  static const std::vector<nlohmann::json> kNone;
  const nlohmann::json& value = json_at(from, keys...);
  return value.is_array() ? value.get_ref<const nlohmann::json::array_t&>() : kNone;
}

}  // namespace nodemesh::ctl

#include "ctl/check_words.h"

#include <algorithm>
#include <charconv>
#include <cstdio>
#include <ctime>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "ctl/json_at.h"

namespace nodemesh::ctl {
namespace {

bool holds(const nlohmann::json& requirement, const std::map<std::string, std::string>& labels) {
  auto op = text_of(requirement, "operator");
  auto found = labels.find(text_of(requirement, "key"));
  bool there = found != labels.end();
  if (op == "Exists") return there;
  if (op == "DoesNotExist") return !there;
  const auto& values = items_of(requirement, "values");
  bool named =
      there && std::ranges::any_of(values, [&](const auto& value) { return value == found->second; });
  return op == "In" ? named : op == "NotIn" ? !named : false;
}

template <class Use>
void for_each_arg(const nlohmann::json& workload, Use&& use) {
  for (const auto& container : items_of(workload, "spec", "template", "spec", "containers")) {
    for (const auto& arg : items_of(container, "args")) {
      if (arg.is_string()) use(arg.get_ref<const std::string&>());
    }
  }
}

}  // namespace

std::string ns_of(const nlohmann::json& object) {
  return text_of(object, "metadata", "namespace");
}

std::string name_of(const nlohmann::json& object) {
  auto ns = ns_of(object), kind = text_of(object, "kind");
  return fmt::format("{} {}{}{}", kind.empty() ? "object" : kind, ns, ns.empty() ? "" : "/",
                     text_of(object, "metadata", "name"));
}

std::optional<std::pair<int, int>> version_in(std::string_view text) {
  if (text.starts_with('v')) text.remove_prefix(1);
  int major = 0, minor = 0;
  const char* end = text.data() + text.size();
  auto first = std::from_chars(text.data(), end, major);
  if (first.ec != std::errc{} || first.ptr == end || *first.ptr != '.') return std::nullopt;
  if (std::from_chars(first.ptr + 1, end, minor).ec != std::errc{}) return std::nullopt;
  return std::pair(major, minor);
}

std::optional<double> time_in(std::string_view text) {
  std::string copy(text);
  tm parts{};
  double second = 0;
  if (std::sscanf(copy.c_str(), "%4d-%2d-%2dT%2d:%2d:%lfZ", &parts.tm_year, &parts.tm_mon, &parts.tm_mday,
                  &parts.tm_hour, &parts.tm_min, &second) != 6)
    return std::nullopt;
  parts.tm_year -= 1900;
  parts.tm_mon -= 1;
  return static_cast<double>(::timegm(&parts)) + second;
}

bool selected_by(const nlohmann::json& selector, const std::map<std::string, std::string>& labels) {
  if (!selector.is_object()) return false;
  const auto& exact = json_at(selector, "matchLabels");
  if (exact.is_object()) {
    for (const auto& [key, value] : exact.items()) {
      auto found = labels.find(key);
      if (found == labels.end() || value != found->second) return false;
    }
  }
  return std::ranges::all_of(items_of(selector, "matchExpressions"),
                             [&](const auto& requirement) { return holds(requirement, labels); });
}

std::map<std::string, std::string> labels_of(const nlohmann::json& object) {
  std::map<std::string, std::string> out;
  const auto& labels = json_at(object, "metadata", "labels");
  if (!labels.is_object()) return out;
  for (const auto& [key, value] : labels.items()) {
    if (value.is_string()) out.emplace(key, value.get<std::string>());
  }
  return out;
}

std::string flag_of_agent(const nlohmann::json& workload, std::string_view flag) {
  std::string out;
  for_each_arg(workload, [&](std::string_view arg) {
    if (arg.starts_with(flag) && arg.substr(flag.size()).starts_with('=')) out = arg.substr(flag.size() + 1);
  });
  return out;
}

bool has_flag(const nlohmann::json& workload, std::string_view flag) {
  bool found = false;
  for_each_arg(workload, [&](std::string_view arg) { found = found || arg == flag; });
  return found;
}

std::string condition_of(const nlohmann::json& object, std::string_view type) {
  for (const auto& condition : items_of(object, "status", "conditions")) {
    if (text_of(condition, "type") == type) return text_of(condition, "status");
  }
  return "";
}

bool is_ready_pod(const nlohmann::json& pod) {
  return condition_of(pod, "Ready") == "True";
}

bool is_finished_pod(const nlohmann::json& pod) {
  auto phase = text_of(pod, "status", "phase");
  return phase == "Succeeded" || phase == "Failed";
}

std::string why_not_ready(const nlohmann::json& pod) {
  for (const auto& condition : items_of(pod, "status", "conditions")) {
    if (text_of(condition, "type") == "PodScheduled" && text_of(condition, "status") == "False")
      return "not scheduled: " + text_of(condition, "message");
  }
  for (const auto& container : items_of(pod, "status", "containerStatuses")) {
    auto name = text_of(container, "name");
    for (const char* state : {"waiting", "terminated"}) {
      auto reason = text_of(container, "state", state, "reason");
      auto message = text_of(container, "state", state, "message");
      if (!reason.empty())
        return fmt::format("container {}: {}{}{}", name, reason, message.empty() ? "" : ": ", message);
    }
    if (!flag_of(container, "ready")) return fmt::format("container {} runs and is not ready", name);
  }
  auto reason = text_of(pod, "status", "reason");
  return reason.empty() ? "phase " + text_of(pod, "status", "phase") : reason;
}

std::optional<double> bytes_in(std::string_view quantity) {
  static constexpr std::pair<std::string_view, double> kUnits[] = {{"", 1},
                                                                   {"k", 1e3},
                                                                   {"M", 1e6},
                                                                   {"G", 1e9},
                                                                   {"Ki", 1024.0},
                                                                   {"Mi", 1 << 20},
                                                                   {"Gi", 1024.0 * (1 << 20)}};
  double number = 0;
  auto [end, error] = std::from_chars(quantity.data(), quantity.data() + quantity.size(), number);
  if (error != std::errc{}) return std::nullopt;
  std::string_view unit(end, static_cast<size_t>(quantity.data() + quantity.size() - end));
  for (const auto& [name, scale] : kUnits) {
    if (unit == name) return number * scale;
  }
  return std::nullopt;
}

}  // namespace nodemesh::ctl

#include "controller/conditions.h"

#include <charconv>

namespace nodemesh::controller {
namespace {

constexpr size_t kMaxMessage = 4096;

std::string text_of(const kube::Problem& problem) {
  std::string out = problem.field.empty() ? "" : problem.field + ": ";
  out += problem.message;
  if (!problem.fix.empty()) out += "; fix: " + problem.fix;
  return out;
}

// What refuses the object first.
std::string all_problems(const kube::Problems& problems) {
  std::string out;
  for (auto severity : {kube::Severity::error, kube::Severity::warning}) {
    for (const auto& problem : problems) {
      if (problem.severity == severity) out += (out.empty() ? "" : ". ") + text_of(problem);
    }
  }
  return out;
}

const Json* condition_in(const Json& object, std::string_view type) {
  const Json* all = find(object, {"status", "conditions"});
  if (!all || !all->is_array()) return nullptr;
  for (const auto& one : *all) {
    if (text_at(one, {"type"}) == type) return &one;
  }
  return nullptr;
}

std::string text_at(const kube::Node& map, std::string_view name) {
  const kube::Node* value = map.find(name);
  return value ? value->text : std::string();
}

}  // namespace

Condition accepted_condition(const kube::Status& status, int64_t generation) {
  using enum kube::Status::State;
  Condition out{.holds = true, .reason = "Accepted", .message = "", .observed_generation = generation};
  if (status.state == accepted) {
    out.message = "Every field of it is served.";
    return out;
  }
  // As it comes back from the API server: else what is not UTF-8 would look changed for ever.
  std::string message = utf8_prefix(all_problems(status.problems), kMaxMessage);
  out.message = Json::parse(dump(Json(message))).get<std::string>();
  if (status.state == warned) {
    out.reason = "AcceptedWithWarnings";
    return out;
  }
  out.holds = false;
  out.reason = "Refused";
  return out;
}

std::optional<Condition> read_condition(const kube::Node& object, std::string_view type) {
  const kube::Node* status = object.find("status");
  const kube::Node* all = status ? status->find("conditions") : nullptr;
  if (!all || all->type != kube::Node::Type::list) return std::nullopt;
  for (const auto& one : all->children) {
    if (text_at(one, "type") != type) continue;
    Condition out{.holds = text_at(one, "status") == "True",
                  .reason = text_at(one, "reason"),
                  .message = text_at(one, "message")};
    std::string generation = text_at(one, "observedGeneration");
    std::from_chars(generation.data(), generation.data() + generation.size(), out.observed_generation);
    return out;
  }
  return std::nullopt;
}

std::optional<Condition> read_condition(const Json& object, std::string_view type) {
  const Json* one = condition_in(object, type);
  if (!one) return std::nullopt;
  Condition out{.holds = text_at(*one, {"status"}) == "True",
                .reason = text_at(*one, {"reason"}),
                .message = text_at(*one, {"message"})};
  const Json* generation = find(*one, {"observedGeneration"});
  if (generation && generation->is_number_integer()) out.observed_generation = generation->get<int64_t>();
  return out;
}

Json condition_json(std::string_view type, const Condition& condition, const std::string& since) {
  Json out = {{"type", type},
              {"status", condition.holds ? "True" : "False"},
              {"reason", condition.reason},
              {"message", condition.message},
              {"lastTransitionTime", since}};
  if (condition.observed_generation != 0) out["observedGeneration"] = condition.observed_generation;
  return out;
}

Json conditions_with(const Json& object, std::string_view type, const Condition& condition,
                     const std::string& now) {
  const Json* all = find(object, {"status", "conditions"});
  const Json* before = condition_in(object, type);
  std::string since = before ? text_at(*before, {"lastTransitionTime"}) : "";
  bool flips = !before || (text_at(*before, {"status"}) == "True") != condition.holds;
  if (flips || since.empty()) since = now;
  Json out = Json::array();
  bool placed = false;
  if (all && all->is_array()) {
    for (const auto& one : *all) {
      if (text_at(one, {"type"}) != type) {
        out.push_back(one);
      } else if (!std::exchange(placed, true)) {
        out.push_back(condition_json(type, condition, since));
      }
    }
  }
  if (!placed) out.push_back(condition_json(type, condition, since));
  return out;
}

}  // namespace nodemesh::controller

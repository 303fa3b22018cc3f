#include "translate/status.h"

#include <charconv>
#include <set>

#include "base/log.h"

namespace nodemesh::translate {
namespace {

// "pods" or "pods[2]".
const kube::Node* step(const kube::Node& node, std::string_view part) {
  auto bracket = std::min(part.find('['), part.size());
  const kube::Node* next = node.find(part.substr(0, bracket));
  if (!next || bracket == part.size()) return next;
  size_t index = 0;
  std::from_chars(part.data() + bracket + 1, part.data() + part.size(), index);
  return index < next->children.size() ? &next->children[index] : next;
}

// Follows "spec.pods[2].ips" one step at a time as far as it exists.
const kube::Node& nearest_node(const kube::Node& root, const std::string& field) {
  const kube::Node* node = &root;
  for (size_t begin = 0; begin < field.size();) {
    auto end = std::min(field.find('.', begin), field.size());
    const kube::Node* next = step(*node, std::string_view(field).substr(begin, end - begin));
    if (!next) break;
    node = next;
    begin = end + 1;
  }
  return *node;
}

std::string identity(const NewProblem& problem) {
  return problem.object + "\n" + problem.problem.to_string();
}

std::vector<NewProblem> flatten(const std::vector<kube::Status>& statuses) {
  std::vector<NewProblem> all;
  for (const auto& status : statuses) {
    std::string name = status.ns.empty() ? status.name : status.ns + "/" + status.name;
    for (const auto& problem : status.problems)
      all.push_back({status.kind.empty() ? "" : status.kind + " " + name, problem});
  }
  return all;
}

}  // namespace

void Reports::add(const kube::Object& object, kube::Severity severity, const std::string& field,
                  std::string message, std::string fix) {
  const auto& node = nearest_node(object.root, field);
  add(object, {severity, "", node.line, node.column, field, std::move(message), std::move(fix)});
}

void Reports::add(const kube::Object& object, kube::Problem problem) {
  problem.file = object.file;
  problems_[{object.key.kind, object.key.ns, object.key.name, object.file}].push_back(std::move(problem));
}

std::vector<kube::Status> Reports::merge(std::vector<kube::Status> statuses) const {
  using enum kube::Status::State;
  for (auto& status : statuses) {
    auto found = problems_.find({status.kind, status.ns, status.name, status.file});
    if (found == problems_.end() || status.state == ignored || status.state == refused) continue;
    status.problems.insert(status.problems.end(), found->second.begin(), found->second.end());
    if (status.state == stale) continue;
    status.state = kube::has_error(status.problems) ? refused : warned;
  }
  return statuses;
}

std::vector<NewProblem> new_problems(const std::vector<kube::Status>& before,
                                     const std::vector<kube::Status>& after) {
  std::set<std::string> known;
  for (const auto& problem : flatten(before)) known.insert(identity(problem));
  std::vector<NewProblem> fresh;
  for (auto& problem : flatten(after)) {
    if (known.insert(identity(problem)).second) fresh.push_back(std::move(problem));
  }
  return fresh;
}

void log_new_problems(const std::vector<kube::Status>& before, const std::vector<kube::Status>& after) {
  for (const auto& [object, problem] : new_problems(before, after)) {
    auto level = problem.severity == kube::Severity::error ? log::Level::error : log::Level::warn;
    if (!log::enabled(log::Component::config, level)) continue;
    if (problem.file.empty()) {  // of an API server, whose objects have no lines
      log::write(log::Component::config, level, problem.message,
                 {{"object", object}, {"field", problem.field}, {"fix", problem.fix}});
      continue;
    }
    log::write(log::Component::config, level, problem.message,
               {{"object", object},
                {"file", problem.file},
                {"line", problem.line},
                {"field", problem.field},
                {"fix", problem.fix}});
  }
}

}  // namespace nodemesh::translate

#include "kube/problem.h"

#include <algorithm>

namespace nodemesh::kube {

std::string Problem::to_string() const {
  std::string text = file;
  if (line) text += ":" + std::to_string(line);
  if (line && column) text += ":" + std::to_string(column);
  if (!text.empty()) text += ": ";
  if (!field.empty()) text += field + ": ";
  text += message;
  if (!fix.empty()) text += "; fix: " + fix;
  return text;
}

bool has_error(const Problems& problems) {
  return std::ranges::find(problems, Severity::error, &Problem::severity) != problems.end();
}

const char* state_name(Status::State state) {
  static constexpr const char* kNames[] = {"accepted", "warned", "stale", "refused", "ignored"};
  return kNames[static_cast<size_t>(state)];
}

}  // namespace nodemesh::kube

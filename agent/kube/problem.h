// What is wrong with an object, in words a person can act on: file, line, field, message, fix. Values; any
// thread.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace nodemesh::kube {

enum class Severity : uint8_t { warning, error };  // an error refuses the object, a warning does not

struct Problem {
  Severity severity = Severity::error;
  std::string file;
  uint32_t line = 0;    // 1-based; 0 = unknown
  uint32_t column = 0;  // 1-based
  std::string field;    // "spec.ports[0].port"; empty = the whole object or file
  std::string message;  // "must be a number"; may quote the file's text, so escape it before a log line
  std::string fix;      // "write a number from 1 to 65535"

  bool operator==(const Problem&) const = default;
  // "policy.yaml:12:3: spec.action: unknown value …; fix: …".
  std::string to_string() const;
};

using Problems = std::vector<Problem>;
bool has_error(const Problems& problems);

// The fate of one object, or of one document that could not be read (then `kind` and `name` are empty).
struct Status {
  enum class State : uint8_t {
    accepted,
    warned,   // in force, with warnings
    stale,    // refused; the last good version is in force
    refused,  // refused; nothing is in force
    ignored,  // a kind that is not read, or a duplicate
  };
  std::string kind;
  std::string ns;
  std::string name;
  std::string file;
  uint32_t line = 0;
  State state = State::accepted;
  Problems problems;

  bool operator==(const Status&) const = default;
};
const char* state_name(Status::State state);

}  // namespace nodemesh::kube

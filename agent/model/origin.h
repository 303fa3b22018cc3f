// Where a piece of the model came from: the object a person would edit. Metrics, logs, status and `meshctl
// why` name it. A plain value; any thread.
#pragma once

#include <compare>
#include <cstdint>
#include <string>

#include "base/text.h"

namespace nodemesh::model {

struct Origin {
  Text kind;  // "AuthorizationPolicy"
  Text ns;    // empty for cluster-scoped objects
  Text name;
  Text section;       // path of the field inside the object, e.g. "spec.rules[0]"; empty = the whole object
  Text file;          // manifest it was read from; empty when it came from the API server
  uint32_t line = 0;  // 1-based line in `file`; 0 = unknown

  auto operator<=>(const Origin&) const = default;
  // "AuthorizationPolicy shop/only-cart (policy.yaml:12)".
  std::string to_string() const;
};

}  // namespace nodemesh::model

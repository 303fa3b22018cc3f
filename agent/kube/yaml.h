// YAML (and JSON, its subset) to Nodes. The text is hostile: size, depth and number of values are bounded,
// aliases are refused, and a document that cannot be read costs only itself. Pure; any thread. yaml-cpp is
// used in yaml.cc only, and its exceptions end there.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "kube/node.h"
#include "kube/problem.h"

namespace nodemesh::kube {

inline constexpr size_t kMaxFileBytes = 4 << 20;
inline constexpr size_t kMaxDepth = 64;
inline constexpr size_t kMaxNodes = 1'000'000;  // per file

struct Documents {
  std::vector<Node> roots;  // one for each document that was read; empty documents are left out
  Problems problems;        // one for each that was not; `file` is as given
};

// `first_line` is the line number of the text's first line, for text that is itself part of a file.
Documents parse_yaml(std::string_view text, const std::string& file, uint32_t first_line = 1);

}  // namespace nodemesh::kube

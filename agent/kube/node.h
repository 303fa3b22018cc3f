// A YAML or JSON value that remembers where it stood, so that every error can name line, column and field
// path. Immutable once its object is built; any thread may read.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace nodemesh::kube {

struct Node {
  enum class Type : uint8_t { null, boolean, integer, decimal, string, map, list };

  Type type = Type::null;
  uint32_t line = 0;  // 1-based
  uint32_t column = 0;
  std::string key;   // the name of this node in its map
  std::string text;  // a scalar as written, without quotes
  std::vector<Node> children;
  const Node* parent = nullptr;  // set by link(); null at the root

  // The value of `name` in a map, or null.
  const Node* find(std::string_view name) const;
  // "spec.ports[0].name", from the root of the object.
  std::string path() const;
  // Sets the parent pointers of everything below. Call when the node has its final address.
  void link();
  // Same value at the same place.
  bool operator==(const Node& other) const;
};

// "a string", "a mapping" …
const char* type_name(Node::Type type);
// What an unquoted scalar is (YAML 1.2 core schema, as Kubernetes reads it).
Node::Type plain_type(std::string_view text);

}  // namespace nodemesh::kube

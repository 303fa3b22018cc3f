// One Kubernetes object as read from a manifest: its metadata in plain members, the rest as a tree that knows
// lines. Immutable and pinned in memory (nodes point to their parents); any thread may read.
#pragma once

#include <compare>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "kube/node.h"
#include "kube/problem.h"
#include "model/origin.h"

namespace nodemesh::kube {

struct ObjectKey {
  std::string group;  // "" for the core group
  std::string kind;
  std::string ns;  // empty for cluster-scoped kinds
  std::string name;

  auto operator<=>(const ObjectKey&) const = default;
};

struct OwnerReference {
  std::string kind;
  std::string name;
  bool controller = false;
};

class Object {
 public:
  Object(Node root, std::string file);
  Object(const Object&) = delete;
  Object& operator=(const Object&) = delete;

  ObjectKey key;
  std::string version;  // "v1"
  std::string uid;
  std::string resource_version;    // of an API server's object; opaque
  std::string creation_timestamp;  // RFC 3339, which sorts as text; may be empty
  std::map<std::string, std::string> labels;
  std::map<std::string, std::string> annotations;
  std::vector<OwnerReference> owners;
  std::string file;
  uint32_t line = 0;
  Node root;
  Problems problems;   // of apiVersion, kind and metadata
  bool named = false;  // kind and name could be read, so it can be told which object this is

  model::Origin origin(std::string section = "") const;
  std::string_view annotation(const std::string& name) const;  // empty when absent
  std::string_view label(const std::string& name) const;
};

struct Manifest {
  std::vector<std::shared_ptr<const Object>>
      objects;        // named ones, in order; kinds ending in List are unfolded
  Problems problems;  // of documents that are not such objects
};

// Reads one file's text. Never fails as a whole: what can be read is returned beside what cannot.
Manifest parse_manifest(std::string_view text, const std::string& file);

}  // namespace nodemesh::kube

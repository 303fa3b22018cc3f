// Reading one mapping of an object field by field. Every getter checks the type and reports what is wrong,
// with line, field path and fix; the destructor warns of keys that nobody asked for. So a reader that lists
// its fields has named all of its errors. A stack object on the control thread; borrows the node and the
// problem list.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/addr.h"
#include "kube/node.h"
#include "kube/problem.h"
#include "model/interner.h"

namespace nodemesh::kube {

class Fields {
 public:
  // `node` may be null (an absent mapping: every field is absent) or of a wrong type (reported, then as
  // absent).
  Fields(const Node* node, Problems& problems, model::Interner* shared = nullptr);
  // A part of `whole`, with its problems and what it shares.
  Fields(const Node* node, const Fields& whole) : Fields(node, whole.problems_, whole.shared_) {}
  ~Fields();
  Fields(const Fields&) = delete;
  Fields& operator=(const Fields&) = delete;

  explicit operator bool() const { return node_ != nullptr; }
  const Node* node() const { return node_; }

  // Absent, null and wrong-typed fields give nullopt, null or an empty container; only the last is reported.
  std::optional<std::string> text(std::string_view key);
  std::optional<bool> boolean(std::string_view key);
  std::optional<int64_t> integer(std::string_view key, int64_t min, int64_t max);
  const Node* map(std::string_view key);
  std::span<const Node> list(std::string_view key);  // of anything
  std::span<const Node> maps(std::string_view key);  // of mappings
  // As text(), for what many objects say: held once for all of them, where there is an interner. Empty when
  // absent.
  Text shared_text(std::string_view key);
  template <class T>
  model::Shared<T> share(T value) {
    if (shared_) return shared_->one(std::move(value));
    return std::make_shared<const T>(std::move(value));
  }
  std::vector<std::string> texts(std::string_view key);
  std::map<std::string, std::string> text_map(std::string_view key);
  // One of `values`; anything else refuses the object and names them.
  template <class T>
  std::optional<T> one_of(std::string_view key, std::span<const std::pair<std::string_view, T>> values) {
    auto value = text(key);
    if (!value) return std::nullopt;
    std::string allowed;
    for (const auto& [name, result] : values) {
      if (*value == name) return result;
      allowed += (allowed.empty() ? "" : ", ") + std::string(name);
    }
    error(key, "unknown value \"" + *value + "\"", "use one of " + allowed);
    return std::nullopt;
  }

  // Any node; marks the key as known.
  const Node* any(std::string_view key);
  // Known to the API and without meaning here: no warning.
  void ignore(std::initializer_list<std::string_view> keys);
  // Known to the API, but not served: a warning that says so, if present.
  void unsupported(std::initializer_list<std::string_view> keys);

  void error(std::string_view key, std::string message, std::string fix);
  void warn(std::string_view key, std::string message, std::string fix);
  // For a required field that is absent.
  void missing(std::string_view key, std::string fix);

 private:
  const Node* find(std::string_view key);
  const Node* typed(std::string_view key, Node::Type type);
  void report(Severity severity, std::string_view key, std::string message, std::string fix);

  const Node* node_ = nullptr;
  Problems& problems_;
  model::Interner* shared_ = nullptr;
  std::vector<bool> seen_;
  std::vector<std::string> known_;  // for "did you mean"; copies, since callers build names
};

// Reports at `node` itself.
void report(Problems& problems, Severity severity, const Node& node, std::string message, std::string fix);
// RFC 1123: lower-case letters, digits, '-' (and '.' in a subdomain), at most 63 (253) characters.
bool is_dns_label(std::string_view text);
bool is_dns_subdomain(std::string_view text);

}  // namespace nodemesh::kube

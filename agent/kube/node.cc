#include "kube/node.h"

#include <algorithm>

namespace nodemesh::kube {
namespace {

bool is_integer(std::string_view text) {
  if (text.starts_with('-') || text.starts_with('+')) text.remove_prefix(1);
  auto all = [](std::string_view digits, auto test) {
    return !digits.empty() && std::ranges::all_of(digits, test);
  };
  if (text.starts_with("0x"))
    return all(text.substr(2), [](unsigned char c) { return std::isxdigit(c) != 0; });
  if (text.starts_with("0o")) return all(text.substr(2), [](char c) { return c >= '0' && c <= '7'; });
  return all(text, [](char c) { return c >= '0' && c <= '9'; });
}

bool is_decimal(std::string_view text) {
  if (text == ".inf" || text == "-.inf" || text == "+.inf" || text == ".nan" || text == ".Inf" ||
      text == ".NaN") {
    return true;
  }
  if (text.starts_with('-') || text.starts_with('+')) text.remove_prefix(1);
  size_t digits = 0, i = 0;
  for (; i < text.size() && (std::isdigit(static_cast<unsigned char>(text[i])) || text[i] == '.'); ++i) {
    digits += text[i] != '.';
  }
  if (digits == 0 || std::ranges::count(text, '.') > 1) return false;
  if (i == text.size()) return true;
  if (text[i] != 'e' && text[i] != 'E') return false;
  return is_integer(text.substr(i + 1));
}

bool plain_key(std::string_view key) {
  return !key.empty() &&
         std::ranges::all_of(key, [](unsigned char c) { return std::isalnum(c) || c == '_' || c == '-'; });
}

}  // namespace

const Node* Node::find(std::string_view name) const {
  if (type != Type::map) return nullptr;
  auto found = std::ranges::find(children, name, &Node::key);
  return found == children.end() ? nullptr : &*found;
}

std::string Node::path() const {
  if (!parent) return "";
  auto prefix = parent->path();
  if (parent->type == Type::list) return prefix + "[" + std::to_string(this - parent->children.data()) + "]";
  if (!plain_key(key)) return prefix + "[\"" + key + "\"]";
  return prefix.empty() ? key : prefix + "." + key;
}

void Node::link() {
  for (auto& child : children) {
    child.parent = this;
    child.link();
  }
}

bool Node::operator==(const Node& other) const {
  return type == other.type && line == other.line && column == other.column && key == other.key &&
         text == other.text && children == other.children;
}

const char* type_name(Node::Type type) {
  static constexpr const char* kNames[] = {"empty",    "a boolean", "a number", "a decimal number",
                                           "a string", "a mapping", "a list"};
  return kNames[static_cast<size_t>(type)];
}

Node::Type plain_type(std::string_view text) {
  using enum Node::Type;
  if (text.empty() || text == "~" || text == "null" || text == "Null" || text == "NULL") return null;
  for (auto word : {"true", "True", "TRUE", "false", "False", "FALSE"}) {
    if (text == word) return boolean;
  }
  if (is_integer(text)) return integer;
  return is_decimal(text) ? decimal : string;
}

}  // namespace nodemesh::kube

#include "kube/fields.h"

#include <algorithm>
#include <charconv>

namespace nodemesh::kube {
namespace {

std::string shown(std::string_view text) {
  constexpr size_t kMax = 80;
  return text.size() <= kMax ? std::string(text) : std::string(text.substr(0, kMax)) + "…";
}

size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = std::exchange(row[0], i);
    for (size_t j = 1; j <= b.size(); ++j) {
      size_t same = std::tolower(a[i - 1]) == std::tolower(b[j - 1]) ? 0 : 1;
      diagonal = std::exchange(row[j], std::min({row[j] + 1, row[j - 1] + 1, diagonal + same}));
    }
  }
  return row.back();
}

std::string_view nearest(std::string_view key, std::span<const std::string> known) {
  std::string_view best;
  size_t best_distance = 3;
  for (const auto& candidate : known) {
    if (key.size() > 64) break;
    auto distance = edit_distance(key, candidate);
    if (distance < best_distance && distance < candidate.size() / 2 + 1)
      best = candidate, best_distance = distance;
  }
  return best;
}

bool wrong_type(Problems& problems, const Node& node, Node::Type wanted) {
  if (node.type == wanted) return false;
  std::string fix = wanted == Node::Type::string && !node.text.empty()
                        ? "quote it: \"" + shown(node.text) + "\""
                        : std::string("write ") + type_name(wanted);
  report(problems, Severity::error, node,
         std::string("must be ") + type_name(wanted) + ", not " + type_name(node.type), fix);
  return true;
}

bool is_dns(std::string_view text, size_t max, bool dots) {
  if (text.empty() || text.size() > max) return false;
  auto alnum = [](char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9'); };
  for (size_t i = 0; i < text.size(); ++i) {
    bool edge = i == 0 || i + 1 == text.size() || (dots && (text[i - 1] == '.' || text[i + 1] == '.'));
    if (alnum(text[i])) continue;
    if (edge || !(text[i] == '-' || (dots && text[i] == '.'))) return false;
  }
  return true;
}

}  // namespace

void report(Problems& problems, Severity severity, const Node& node, std::string message, std::string fix) {
  problems.push_back({severity, "", node.line, node.column, node.path(), std::move(message), std::move(fix)});
}

bool is_dns_label(std::string_view text) {
  return is_dns(text, 63, false);
}
bool is_dns_subdomain(std::string_view text) {
  return is_dns(text, 253, true);
}

Fields::Fields(const Node* node, Problems& problems, model::Interner* shared)
    : problems_(problems), shared_(shared) {
  if (!node || node->type == Node::Type::null || wrong_type(problems, *node, Node::Type::map)) return;
  node_ = node;
  seen_.resize(node->children.size());
}

Fields::~Fields() {
  for (size_t i = 0; i < seen_.size(); ++i) {
    if (seen_[i]) continue;
    const auto& child = node_->children[i];
    auto similar = nearest(child.key, known_);
    kube::report(problems_, Severity::warning, child, "unknown field, ignored",
                 similar.empty() ? "remove it" : "did you mean \"" + std::string(similar) + "\"?");
  }
}

const Node* Fields::find(std::string_view key) {
  known_.emplace_back(key);
  if (!node_) return nullptr;
  const Node* found = node_->find(key);
  if (!found) return nullptr;
  seen_[static_cast<size_t>(found - node_->children.data())] = true;
  return found->type == Node::Type::null ? nullptr : found;
}

const Node* Fields::typed(std::string_view key, Node::Type type) {
  const Node* found = find(key);
  return found && !wrong_type(problems_, *found, type) ? found : nullptr;
}

const Node* Fields::any(std::string_view key) {
  return find(key);
}
const Node* Fields::map(std::string_view key) {
  return typed(key, Node::Type::map);
}

std::optional<std::string> Fields::text(std::string_view key) {
  const Node* found = typed(key, Node::Type::string);
  return found ? std::optional(found->text) : std::nullopt;
}

Text Fields::shared_text(std::string_view key) {
  const Node* found = typed(key, Node::Type::string);
  if (!found) return {};
  return shared_ ? shared_->text(found->text) : Text(found->text);
}

std::optional<bool> Fields::boolean(std::string_view key) {
  const Node* found = typed(key, Node::Type::boolean);
  return found ? std::optional(found->text[0] == 't' || found->text[0] == 'T') : std::nullopt;
}

std::optional<int64_t> Fields::integer(std::string_view key, int64_t min, int64_t max) {
  const Node* found = typed(key, Node::Type::integer);
  if (!found) return std::nullopt;
  int64_t value = 0;
  auto& text = found->text;
  auto [end, failed] = std::from_chars(text.data() + (text[0] == '+'), text.data() + text.size(), value);
  if (failed == std::errc{} && end == text.data() + text.size() && value >= min && value <= max) return value;
  error(key, "the number " + shown(text) + " is out of range",
        "write a number from " + std::to_string(min) + " to " + std::to_string(max));
  return std::nullopt;
}

std::span<const Node> Fields::list(std::string_view key) {
  const Node* found = typed(key, Node::Type::list);
  return found ? std::span(found->children) : std::span<const Node>{};
}

std::span<const Node> Fields::maps(std::string_view key) {
  auto items = list(key);
  bool good = true;
  for (const auto& item : items) good &= !wrong_type(problems_, item, Node::Type::map);
  return good ? items : std::span<const Node>{};
}

std::vector<std::string> Fields::texts(std::string_view key) {
  std::vector<std::string> values;
  for (const auto& item : list(key)) {
    if (!wrong_type(problems_, item, Node::Type::string)) values.push_back(item.text);
  }
  return values;
}

std::map<std::string, std::string> Fields::text_map(std::string_view key) {
  std::map<std::string, std::string> values;
  const Node* found = map(key);
  if (!found) return values;
  for (const auto& item : found->children) {
    if (item.type == Node::Type::null) {
      values[item.key];
    } else if (!wrong_type(problems_, item, Node::Type::string)) {
      values[item.key] = item.text;
    }
  }
  return values;
}

void Fields::ignore(std::initializer_list<std::string_view> keys) {
  for (auto key : keys) find(key);
}

void Fields::unsupported(std::initializer_list<std::string_view> keys) {
  for (auto key : keys) {
    if (find(key))
      warn(key, "not supported in this release, has no effect", "remove it, or do without it for now");
  }
}

void Fields::error(std::string_view key, std::string message, std::string fix) {
  report(Severity::error, key, std::move(message), std::move(fix));
}
void Fields::warn(std::string_view key, std::string message, std::string fix) {
  report(Severity::warning, key, std::move(message), std::move(fix));
}
void Fields::missing(std::string_view key, std::string fix) {
  report(Severity::error, key, "is required but missing", std::move(fix));
}

void Fields::report(Severity severity, std::string_view key, std::string message, std::string fix) {
  const Node* at = node_ ? node_->find(key) : nullptr;
  if (at) return kube::report(problems_, severity, *at, std::move(message), std::move(fix));
  std::string field = node_ ? node_->path() : "";
  field += (field.empty() ? "" : ".") + std::string(key);
  problems_.push_back({severity, "", node_ ? node_->line : 0, node_ ? node_->column : 0, field,
                       std::move(message), std::move(fix)});
}

}  // namespace nodemesh::kube

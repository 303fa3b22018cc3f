#include "kube/json.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>
#include <tuple>
#include <utility>

#include "kube/yaml.h"

namespace nodemesh::kube {
namespace {

// A list page holds up to 500 objects.
constexpr size_t kMaxPageNodes = 4'000'000;
// Of a list page, an item's own value is so deep: the page is a map that holds the list of items.
constexpr size_t kItemsDepth = 2;

// Builds the tree from parser events.
class Builder final : public nlohmann::json_sax<nlohmann::json> {
 public:
  Builder(size_t max_nodes, bool page) : max_nodes_(max_nodes), page_(page) {}

  Node root;
  JsonFailure failure;
  size_t left_out = 0;

  bool null() override { return scalar(Node::Type::null, {}); }
  bool boolean(bool value) override { return scalar(Node::Type::boolean, value ? "true" : "false"); }
  bool number_integer(number_integer_t value) override {
    return scalar(Node::Type::integer, std::to_string(value));
  }
  bool number_unsigned(number_unsigned_t value) override {
    return scalar(Node::Type::integer, std::to_string(value));
  }
  bool number_float(number_float_t, const string_t& text) override {
    return scalar(Node::Type::decimal, text);
  }
  bool string(string_t& text) override { return scalar(Node::Type::string, std::move(text)); }
  bool binary(binary_t&) override { return false; }
  bool start_object(size_t) override { return open(Node::Type::map); }
  bool start_array(size_t) override { return open(Node::Type::list); }
  bool end_array() override { return close(); }
  bool end_object() override { return close(); }

  bool key(string_t& name) override {
    if (skip_from_) return true;
    // Written by the API server and kubectl for themselves, and often most of an object.
    const std::string& place = open_.back().key;
    bool ballast = (name == "managedFields" && place == "metadata") ||
                   (name == "kubectl.kubernetes.io/last-applied-configuration" && place == "annotations");
    if (ballast) {
      skip_from_ = depth_;
    } else {
      keys_.back() = std::move(name);
    }
    return true;
  }

  bool parse_error(size_t position, const std::string&, const nlohmann::detail::exception&) override {
    failure = {true, "no JSON at byte " + std::to_string(position)};
    return false;
  }

 private:
  bool scalar(Node::Type type, std::string text) {
    if (skip_from_) {
      if (depth_ == *skip_from_) skip_from_.reset();
      return true;
    }
    if (!count()) return too_much("it holds too many values");
    attach(Node{.type = type, .text = std::move(text)});
    return true;
  }

  bool open(Node::Type type) {
    ++depth_;
    if (skip_from_) return true;
    if (!count()) return too_much("it holds too many values");
    if (open_.size() >= kMaxDepth) return too_much("it is nested deeper than 64 levels");
    Node node{.type = type};
    if (!open_.empty() && open_.back().type == Node::Type::map) node.key = std::move(keys_.back());
    open_.push_back(std::move(node));
    keys_.emplace_back();
    return true;
  }

  bool close() {
    --depth_;
    if (skip_from_) {
      if (depth_ == *skip_from_) skip_from_.reset();
      return true;
    }
    Node node = std::move(open_.back());
    open_.pop_back();
    keys_.pop_back();
    if (node.type == Node::Type::map && has_key_twice(node))
      return too_much("a key stands twice in a mapping");
    if (open_.empty()) {
      root = std::move(node);
    } else {
      open_.back().children.push_back(std::move(node));
    }
    return true;
  }

  void attach(Node node) {
    if (open_.empty()) {
      root = std::move(node);
      return;
    }
    if (open_.back().type == Node::Type::map) node.key = std::move(keys_.back());
    open_.back().children.push_back(std::move(node));
  }

  bool count() { return ++nodes_ <= max_nodes_; }

  // In a page the item alone is left out, unless it is the page that is too large.
  bool too_much(std::string message) {
    bool item = page_ && open_.size() > kItemsDepth && nodes_ <= max_nodes_;
    // A map that was just closed is not in open_ any more.
    if (page_ && open_.size() == kItemsDepth && depth_ == kItemsDepth && nodes_ <= max_nodes_) {
      ++left_out;
      return true;
    }
    if (!item) {
      failure = {false, std::move(message)};
      return false;
    }
    ++left_out;
    open_.resize(kItemsDepth);
    keys_.resize(kItemsDepth);
    skip_from_ = kItemsDepth;
    return true;
  }

  // Which of the two would count is anybody's guess.
  static bool has_key_twice(const Node& map) {
    if (map.children.size() < 2) return false;
    std::vector<std::string_view> names;
    names.reserve(map.children.size());
    for (const auto& child : map.children) names.push_back(child.key);
    std::ranges::sort(names);
    return std::ranges::adjacent_find(names) != names.end();
  }

  const size_t max_nodes_;
  const bool page_;
  size_t nodes_ = 0;
  size_t depth_ = 0;  // of the parser; more than open_ has while something is left out
  std::optional<size_t> skip_from_;
  std::vector<Node> open_;
  std::vector<std::string> keys_;  // of each open map: read, waiting for its value
};

std::expected<Builder, JsonFailure> build(std::string_view text, size_t max_nodes, bool page) {
  Builder builder(max_nodes, page);
  if (nlohmann::json::sax_parse(text.begin(), text.end(), &builder)) return builder;
  if (builder.failure.message.empty()) builder.failure = {true, "no JSON"};
  return std::unexpected(std::move(builder.failure));
}

std::string text_of(const Node& map, std::string_view name) {
  const Node* node = map.find(name);
  return node != nullptr && node->type == Node::Type::string ? node->text : std::string();
}

Node* child_of(Node& map, std::string_view name) {
  auto found = std::ranges::find(map.children, name, &Node::key);
  return found == map.children.end() ? nullptr : &*found;
}

void write_over(Node& map, std::string_view name, std::string_view text) {
  Node* node = child_of(map, name);
  if (node == nullptr) node = &map.children.emplace_back(Node{.key = std::string(name)});
  node->type = Node::Type::string;
  node->children.clear();
  node->text = text;
}

void append_quoted(std::string& out, std::string_view text) {
  static constexpr char kDigits[] = "0123456789abcdef";
  out += '"';
  for (char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    if (static_cast<unsigned char>(c) >= 0x20) {
      out += c;
    } else {
      out.append("\\u00").append({kDigits[c >> 4], kDigits[c & 15]});
    }
  }
  out += '"';
}

// Leaves out what is not among `fields`: dotted paths, where a list's items have the list's path.
class JsonWriter {
 public:
  JsonWriter(std::span<const std::string_view> fields, std::string& out) : fields_(fields), out_(out) {}

  void write(const Node& node) {
    switch (node.type) {
      case Node::Type::map:
        return write_all(node, '{', '}');
      case Node::Type::list:
        return write_all(node, '[', ']');
      case Node::Type::string:
        return append_quoted(out_, node.text);
      case Node::Type::null:
        out_ += "null";
        return;
      default:
        out_ += node.text;
    }
  }

 private:
  void write_all(const Node& node, char open, char close) {
    out_ += open;
    bool first = true;
    for (const auto& child : node.children) {
      const size_t before = path_.size();
      if (open == '{') path_.append(path_.empty() ? "" : ".").append(child.key);
      if (open == '[' || kept()) {
        if (!std::exchange(first, false)) out_ += ',';
        if (open == '{') append_quoted(out_, child.key), out_ += ':';
        write(child);
      }
      path_.resize(before);
    }
    out_ += close;
  }

  // The path is a field, or leads to one, or is below one.
  bool kept() const {
    auto below = [](std::string_view path, std::string_view above) {
      return path.starts_with(above) && (path.size() == above.size() || path[above.size()] == '.');
    };
    if (fields_.empty()) return true;
    for (std::string_view field : {"apiVersion", "kind", "metadata"}) {
      if (below(path_, field)) return true;
    }
    return std::ranges::any_of(
        fields_, [&](std::string_view field) { return below(path_, field) || below(field, path_); });
  }

  std::span<const std::string_view> fields_;
  std::string& out_;
  std::string path_;
};

}  // namespace

std::expected<Node, JsonFailure> parse_json(std::string_view text, size_t max_nodes) {
  auto built = build(text, max_nodes, false);
  if (!built) return std::unexpected(std::move(built.error()));
  return std::move(built->root);
}

void write_json(const Node& node, std::span<const std::string_view> fields, std::string& out) {
  JsonWriter{fields, out}.write(node);
}

std::shared_ptr<Object> make_api_object(Node root, std::string_view kind, std::string_view api_version) {
  if (root.type == Node::Type::map) {
    root.key.clear();
    write_over(root, "kind", kind);
    write_over(root, "apiVersion", api_version);
  }
  return std::make_shared<Object>(std::move(root), "");
}

std::expected<ListPage, JsonFailure> parse_list_page(std::string_view text) {
  auto built = build(text, kMaxPageNodes, true);
  if (!built) return std::unexpected(std::move(built.error()));
  ListPage page;
  page.left_out = built->left_out;
  const Node* metadata = built->root.find("metadata");
  if (metadata != nullptr) {
    page.resource_version = text_of(*metadata, "resourceVersion");
    page.next = text_of(*metadata, "continue");
  }
  if (page.resource_version.empty())
    return std::unexpected(JsonFailure{true, "the answer is no list: it has no metadata.resourceVersion"});
  // An empty list is `null` in some servers' JSON; a list without the field at all is something else.
  Node* items = child_of(built->root, "items");
  if (items == nullptr || (items->type != Node::Type::list && items->type != Node::Type::null))
    return std::unexpected(JsonFailure{true, "the answer is no list: it has no items"});
  page.items = std::move(items->children);
  return page;
}

std::expected<WatchEvent, JsonFailure> parse_watch_event(std::string_view line) {
  static constexpr std::pair<std::string_view, WatchEvent::Type> kTypes[] = {
      {"ADDED", WatchEvent::Type::added},     {"MODIFIED", WatchEvent::Type::modified},
      {"DELETED", WatchEvent::Type::deleted}, {"BOOKMARK", WatchEvent::Type::bookmark},
      {"ERROR", WatchEvent::Type::error},
  };
  auto root = parse_json(line);
  if (!root) return std::unexpected(std::move(root.error()));
  auto type = std::ranges::find(kTypes, text_of(*root, "type"),
                                &std::pair<std::string_view, WatchEvent::Type>::first);
  Node* object = child_of(*root, "object");
  if (type == std::end(kTypes) || object == nullptr || object->type != Node::Type::map)
    return std::unexpected(JsonFailure{true, "no watch event: type or object is missing"});
  return WatchEvent{type->second, std::move(*object)};
}

bool LineSplitter::take(std::string_view piece, bool ended) {
  if (dropping_) {
    dropping_ = !ended;
    return false;
  }
  if (kept_.size() + piece.size() > max_) {
    ++dropped_;
    dropping_ = !ended;
    kept_.clear();
    kept_.shrink_to_fit();
    return false;
  }
  if (!ended || !kept_.empty()) kept_.append(piece);
  return ended && (!kept_.empty() || !piece.empty());
}

void LineSplitter::clear() {
  kept_.clear();
  dropped_ = 0;
  dropping_ = false;
}

}  // namespace nodemesh::kube

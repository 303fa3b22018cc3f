#include "kube/yaml.h"

#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/mark.h>
#include <yaml-cpp/parser.h>

#include <algorithm>
#include <optional>
#include <sstream>
#include <tuple>

namespace nodemesh::kube {
namespace {

// Ends the reading of a document; caught, with yaml-cpp's own exceptions, in read_document().
struct Refused : YAML::Exception {
  Refused(const YAML::Mark& mark, const std::string& message, std::string how)
      : YAML::Exception(mark, message), fix(std::move(how)) {}
  std::string fix;
};

// Builds one document's tree from parser events.
class Builder final : public YAML::EventHandler {
 public:
  Builder(uint32_t first_line, size_t& nodes) : first_line_(first_line), nodes_(nodes) {}

  std::optional<Node> take() { return std::move(root_); }

  void OnDocumentStart(const YAML::Mark&) override {}
  void OnDocumentEnd() override {}
  void OnNull(const YAML::Mark& mark, YAML::anchor_t) override { value(mark, make(mark, Node::Type::null)); }
  void OnAlias(const YAML::Mark& mark, YAML::anchor_t) override {
    throw Refused(mark, "aliases (*name) are not accepted", "write the value out");
  }
  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t,
                const std::string& text) override {
    if (in_key()) {
      keys_.back() = Key{text, line_of(mark), column_of(mark)};
      return;
    }
    bool quoted = tag == "!" || tag == "tag:yaml.org,2002:str";
    Node node = make(mark, quoted ? Node::Type::string : plain_type(text));
    node.text = text;
    value(mark, std::move(node));
  }
  void OnSequenceStart(const YAML::Mark& mark, const std::string&, YAML::anchor_t,
                       YAML::EmitterStyle::value) override {
    open(mark, Node::Type::list);
  }
  void OnSequenceEnd() override { close(); }
  void OnMapStart(const YAML::Mark& mark, const std::string&, YAML::anchor_t,
                  YAML::EmitterStyle::value) override {
    open(mark, Node::Type::map);
  }
  void OnMapEnd() override {
    refuse_duplicate_keys(open_.back());
    close();
  }

 private:
  bool in_key() const { return !open_.empty() && open_.back().type == Node::Type::map && !keys_.back(); }

  Node make(const YAML::Mark& mark, Node::Type type) {
    if (++nodes_ > kMaxNodes) throw Refused(mark, "the file holds too many values", "split the file");
    Node node;
    node.type = type;
    node.line = line_of(mark);
    node.column = column_of(mark);
    return node;
  }

  uint32_t line_of(const YAML::Mark& mark) const { return first_line_ + static_cast<uint32_t>(mark.line); }
  static uint32_t column_of(const YAML::Mark& mark) { return static_cast<uint32_t>(mark.column) + 1; }

  void open(const YAML::Mark& mark, Node::Type type) {
    if (in_key()) throw Refused(mark, "a mapping key must be a plain string", "write the key as text");
    if (open_.size() >= kMaxDepth) {
      throw Refused(mark, "values are nested deeper than " + std::to_string(kMaxDepth) + " levels",
                    "flatten the object");
    }
    open_.push_back(make(mark, type));
    keys_.emplace_back();
  }

  void close() {
    Node node = std::move(open_.back());
    open_.pop_back();
    keys_.pop_back();
    attach(std::move(node));
  }

  void value(const YAML::Mark& mark, Node node) {
    if (in_key()) throw Refused(mark, "a mapping key must not be empty", "write the key as text");
    attach(std::move(node));
  }

  void attach(Node node) {
    if (open_.empty()) {
      root_ = std::move(node);
      return;
    }
    if (auto& key = keys_.back()) {
      node.key = std::move(key->text);
      if (node.type == Node::Type::map || node.type == Node::Type::list) {
        node.line = key->line;  // where a person looks for it
        node.column = key->column;
      }
      key.reset();
    }
    open_.back().children.push_back(std::move(node));
  }

  // yaml-cpp keeps both silently; which of the two would count is anybody's guess.
  void refuse_duplicate_keys(const Node& map) {
    std::vector<const Node*> sorted;
    for (const auto& child : map.children) sorted.push_back(&child);
    std::ranges::sort(sorted, [](auto* a, auto* b) { return std::tie(a->key, a) < std::tie(b->key, b); });
    auto twice = std::ranges::adjacent_find(sorted, {}, &Node::key);
    if (twice == sorted.end()) return;
    const Node& second = **(twice + 1);
    YAML::Mark mark;
    mark.line = static_cast<int>(second.line - first_line_);
    mark.column = static_cast<int>(second.column) - 1;
    throw Refused(mark,
                  "the key \"" + second.key + "\" stands twice in one mapping (first at line " +
                      std::to_string((*twice)->line) + ")",
                  "remove one of the two");
  }

  struct Key {
    std::string text;
    uint32_t line;
    uint32_t column;
  };

  uint32_t first_line_;
  size_t& nodes_;
  std::vector<Node> open_;
  std::vector<std::optional<Key>> keys_;  // of the innermost open map: read, waiting for its value
  std::optional<Node> root_;
};

Problem document_problem(const std::string& file, uint32_t first_line, const YAML::Exception& e,
                         std::string fix) {
  Problem problem{.file = file, .message = e.msg, .fix = std::move(fix)};
  if (!e.mark.is_null()) {
    problem.line = first_line + static_cast<uint32_t>(e.mark.line);
    problem.column = static_cast<uint32_t>(e.mark.column) + 1;
  } else {
    problem.line = first_line;
  }
  return problem;
}

void read_document(std::string_view text, const std::string& file, uint32_t first_line, size_t& nodes,
                   Documents& out) {
  try {
    // yaml-cpp takes the end of the input for the end of a quoted scalar; a document end marker there is an
    // error.
    std::string closed(text);
    if (!closed.ends_with('\n')) closed += '\n';
    std::istringstream stream(closed + "...\n");
    YAML::Parser parser(stream);
    Builder builder(first_line, nodes);
    // A chunk holds one document; what follows it after a "..." line does not count.
    if (!parser.HandleNextDocument(builder)) return;
    auto root = builder.take();
    if (root && root->type != Node::Type::null) out.roots.push_back(std::move(*root));
  } catch (const Refused& e) {
    out.problems.push_back(document_problem(file, first_line, e, e.fix));
  } catch (const YAML::Exception& e) {
    out.problems.push_back(document_problem(file, first_line, e, "correct the YAML at this place"));
  }
}

bool is_separator(std::string_view line) {
  return line.starts_with("---") &&
         (line.size() == 3 || line[3] == ' ' || line[3] == '\t' || line[3] == '\r');
}

// How many bytes the UTF-8 character at the start of `text` has; 0 when it is none (RFC 3629).
size_t character_length(std::string_view text) {
  auto byte = [&](size_t i) { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0u; };
  unsigned first = byte(0);
  if (first < 0x80) return 1;
  size_t length = first < 0xc2 ? 0 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : first < 0xf5 ? 4 : 0;
  for (size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xc0) != 0x80) return 0;
  }
  bool overlong = (first == 0xe0 && byte(1) < 0xa0) || (first == 0xf0 && byte(1) < 0x90);
  bool beyond = (first == 0xed && byte(1) > 0x9f) || (first == 0xf4 && byte(1) > 0x8f);
  return overlong || beyond ? 0 : length;
}

// Control characters have no place in YAML, and yaml-cpp takes 0x04 for the end of the file. What is not
// UTF-8 could not be shown as JSON later.
std::optional<Problem> not_text(std::string_view text, const std::string& file, uint32_t line) {
  Problem problem{.file = file, .fix = "save the file as UTF-8 text without control characters"};
  for (size_t i = 0; i < text.size();) {
    auto c = static_cast<unsigned char>(text[i]);
    size_t length = character_length(text.substr(i, 4));
    if (c == '\n') ++line;
    problem.line = line;
    if (length == 0) {
      problem.message = "the file is not UTF-8";
      return problem;
    }
    if ((c < 0x20 && c != '\n' && c != '\r' && c != '\t') || c == 0x7f) {
      problem.message = "the file holds a control character (code " + std::to_string(c) + ")";
      return problem;
    }
    i += length;
  }
  return std::nullopt;
}

}  // namespace

Documents parse_yaml(std::string_view text, const std::string& file, uint32_t first_line) {
  Documents out;
  if (text.size() > kMaxFileBytes) {
    out.problems.push_back(
        {.file = file, .message = "the file is larger than 4 MiB", .fix = "split the file"});
    return out;
  }
  if (text.starts_with("\xef\xbb\xbf")) text.remove_prefix(3);
  if (auto problem = not_text(text, file, first_line)) {
    out.problems.push_back(std::move(*problem));
    return out;
  }
  // Split here rather than in yaml-cpp, which cannot go on after an error. "---" at the start of a line
  // always ends a document, even inside a block scalar (YAML 1.2, 9.1.2).
  size_t nodes = 0, begin = 0, position = 0;
  uint32_t line = first_line, document_line = first_line;
  while (position <= text.size()) {
    auto end = std::min(text.find('\n', position), text.size());
    if (position > begin && is_separator(text.substr(position, end - position))) {
      read_document(text.substr(begin, position - begin), file, document_line, nodes, out);
      begin = position;
      document_line = line;
    }
    position = end + 1;
    ++line;
  }
  read_document(text.substr(begin), file, document_line, nodes, out);
  return out;
}

}  // namespace nodemesh::kube

// JSON from an API server to Nodes, without an intermediate tree. The text is hostile: depth and number of
// values are bounded as for manifests (kube/yaml.h), a key that stands twice is refused, and so is anything
// behind the value. metadata.managedFields, often half of an object, is read and not kept. Nodes have no line
// (0). Pure; any thread. nlohmann's exceptions end in json.cc.
#pragma once

#include <expected>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "kube/objects.h"

namespace nodemesh::kube {

// Why a text is no tree.
struct JsonFailure {
  bool broken = false;  // it is not JSON at all; else it is too deep or too large for us
  std::string message;
};
std::expected<Node, JsonFailure> parse_json(std::string_view text, size_t max_nodes = 1'000'000);

// The text of a tree that was read as above, appended to `out`; also, where `fields` is not empty, only of
// these of its fields (Kind::fields) and of apiVersion, kind and metadata.
void write_json(const Node& node, std::span<const std::string_view> fields, std::string& out);

// One object of an API source. `kind` and `api_version` are written over what the object says: items of lists
// leave them out, and metadata-only objects say PartialObjectMetadata.
std::shared_ptr<Object> make_api_object(Node root, std::string_view kind, std::string_view api_version);

// One answer to a list request (metav1.List).
struct ListPage {
  std::string resource_version;
  std::string next;  // metadata.continue; empty: the last page
  std::vector<Node> items;
  size_t left_out = 0;  // items that are too deep for us
};
// A page that is no list is `broken`.
std::expected<ListPage, JsonFailure> parse_list_page(std::string_view text);

// One line of a watch (metav1.WatchEvent).
struct WatchEvent {
  enum class Type : uint8_t { added, modified, deleted, bookmark, error };
  Type type = Type::error;
  Node object;
};
std::expected<WatchEvent, JsonFailure> parse_watch_event(std::string_view line);

// Cuts a stream of bytes into lines of at most `max` bytes. A longer line is dropped whole and counted.
class LineSplitter {
 public:
  explicit LineSplitter(size_t max) : max_(max) {}
  // The views that `line` gets die with its call. Empty lines are left out. `line` returns false to stop:
  // what is left of `bytes` is forgotten.
  template <class Line>
  void feed(std::string_view bytes, Line&& line) {
    while (!bytes.empty()) {
      size_t end = bytes.find('\n');
      std::string_view piece = bytes.substr(0, end);
      bytes.remove_prefix(end == bytes.npos ? bytes.size() : end + 1);
      if (!take(piece, end != bytes.npos)) continue;
      bool go_on = line(kept_.empty() ? piece : std::string_view(kept_));
      kept_.clear();
      if (!go_on) return;
    }
  }
  void clear();
  // Lines dropped since the last call.
  size_t take_dropped() { return std::exchange(dropped_, 0); }

 private:
  // Whether a whole line is there: in `kept_`, or if that is empty in `piece`.
  bool take(std::string_view piece, bool ended);

  size_t max_;
  std::string kept_;
  size_t dropped_ = 0;
  bool dropping_ = false;
};

}  // namespace nodemesh::kube

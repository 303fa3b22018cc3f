// All objects that were read, by kind, namespace and name, each with its last good version: an object whose
// new version is bad keeps its old one in force, and a file that cannot be read keeps its objects. Says of
// every object whether it was accepted and why not. Owned by the control thread; not thread-safe; no I/O.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kube/fields.h"
#include "kube/objects.h"

namespace nodemesh::kube {

// What a kind's reader makes of an object; translate/ derives from it.
struct Decoded {
  virtual ~Decoded() = default;
};

struct Kind {
  std::string_view group;
  std::string_view name;
  std::vector<std::string_view> versions;
  bool namespaced = true;
  // Reads the top-level fields (apiVersion, kind and metadata are already marked as known) and reports what
  // is wrong to `problems`; an error there refuses the object. Null: the kind has no fields that matter.
  std::shared_ptr<const Decoded> (*read)(const Object& object, Fields& fields, Problems& problems) = nullptr;
};

struct Entry {
  std::shared_ptr<const Object> object;    // the version in force
  std::shared_ptr<const Decoded> decoded;  // of `object`; null only for kinds without a reader
};

class Store {
 public:
  // `kinds` must outlive the store.
  explicit Store(std::span<const Kind> kinds) : kinds_(kinds) {}

  // Replaces everything that came from `file`, last good versions kept as said above. Returns whether
  // anything changed.
  bool set_file(const std::string& file, Manifest manifest);
  // The file could not be read: its objects stay in force, `problem` is reported.
  bool fail_file(const std::string& file, Problem problem);
  // The file is gone, and so are its objects.
  bool remove_file(const std::string& file);

  // Those in force, sorted by namespace and name. Valid until the next change.
  std::span<const Entry> objects(std::string_view kind) const;
  const Entry* find(std::string_view kind, std::string_view ns, std::string_view name) const;
  size_t size() const { return size_; }
  // One for every object and every unreadable document, by file and line. Valid until the next change.
  const std::vector<Status>& statuses() const { return statuses_; }
  // Raised by every change.
  uint64_t generation() const { return generation_; }

 private:
  struct Version {
    std::shared_ptr<const Object> newest;
    Entry good;  // empty when no version was ever good
    Problems problems;
    bool known_kind = true;
  };
  struct File {
    std::vector<Version> versions;
    Problems problems;
  };
  using Claims = std::map<ObjectKey, const Version*>;

  const Kind* find_kind(const ObjectKey& key) const;
  Version read(std::shared_ptr<const Object> object, const Version* before) const;
  void keep_last_good(File& file, const File& before) const;
  void publish();
  Status status_of(const Version& version, const Claims& claims) const;

  std::span<const Kind> kinds_;
  std::map<std::string, File> files_;
  std::map<std::string, std::vector<Entry>, std::less<>> in_force_;  // by kind
  std::vector<Status> statuses_;
  size_t size_ = 0;
  uint64_t generation_ = 0;
};

}  // namespace nodemesh::kube

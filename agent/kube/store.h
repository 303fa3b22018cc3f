// All objects that were read, by kind, namespace and name, each with its last good version: an object whose
// new version is bad keeps its old one in force, and a file that cannot be read keeps its objects. Says of
// every object whether it was accepted and why not. Filled file by file (a folder) or object by object (an
// API server). Owned by the control thread; not thread-safe, not even for reading; no I/O.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <set>
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
  bool metadata_only = false;  // `read` wants nothing else, so an API server need not send it
  // Paths of what `read` wants ("spec.containers.ports"; items of lists have the list's). Nothing else goes
  // into a snapshot on disk. Empty: everything. Named where objects hold secrets, or much that is of no use.
  std::span<const std::string_view> fields = {};
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
  // One object of an API server, new or changed; its tree is given up once it is read. O(log n) while there
  // are no files. Returns whether anything changed.
  bool upsert(std::shared_ptr<Object> object);
  bool remove(const ObjectKey& key);

  // Those in force, sorted by namespace and name. Valid until the next change. O(n) at the first call after a
  // change of the kind.
  std::span<const Entry> objects(std::string_view kind) const;
  const Entry* find(std::string_view kind, std::string_view ns, std::string_view name) const;
  // The newest versions of a kind's objects, those that are refused as well, for whoever writes the objects
  // itself and must see what became of them. Valid until the next change. O(n) of the kind.
  struct Newest {
    const Object& object;
    const Decoded* decoded;  // null: refused, or a kind without a reader
  };
  std::vector<Newest> newest(std::string_view kind) const;
  size_t size() const { return size_; }
  // One for every object and every unreadable document, by file and line. O(n).
  std::vector<Status> statuses() const;
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
  // A kind's name may be in use in several groups.
  struct Place {
    std::string_view ns, name, group;
    auto operator<=>(const Place&) const = default;
  };
  struct ByPlace {
    using is_transparent = void;
    static Place place(const ObjectKey& key) { return {key.ns, key.name, key.group}; }
    static Place place(const Entry& entry) { return place(entry.object->key); }
    static Place place(const Place& at) { return at; }
    bool operator()(const auto& a, const auto& b) const { return place(a) < place(b); }
  };
  // An object's own key serves as that of its place in a table.
  struct ByKey {
    using is_transparent = void;
    static const ObjectKey& key(const ObjectKey& key) { return key; }
    static const ObjectKey& key(const ObjectKey* key) { return *key; }
    bool operator()(const auto& a, const auto& b) const { return key(a) < key(b); }
  };
  struct InForce {
    std::set<Entry, ByPlace> entries;
    mutable std::vector<Entry> sorted;  // the same, made when it is asked for
    mutable bool sorted_stale = true;
  };

  const Kind* find_kind(const ObjectKey& key) const;
  Version read(std::shared_ptr<const Object> object, const Version* before);
  void keep_last_good(File& file, const File& before) const;
  Claims claims() const;
  void publish();
  void publish(const ObjectKey& key, const Entry& entry);
  Status status_of(const Version& version, const Claims& claims) const;

  std::span<const Kind> kinds_;
  model::Interner shared_;  // what readers find in many objects
  std::map<std::string, File> files_;
  std::map<const ObjectKey*, Version, ByKey> singles_;    // by that of `newest`
  std::map<std::string, InForce, std::less<>> in_force_;  // by kind
  size_t size_ = 0;
  uint64_t generation_ = 0;
};

}  // namespace nodemesh::kube

// Typed access to a BPF map that is pinned by name: one descriptor, keys and values as in bpf/abi.h. Owned by
// Capture; the warden's thread.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/fd.h"
#include "base/reason.h"

namespace nodemesh::kernel {

class Map {
 public:
  Map() = default;
  // Opens the pin `directory`/`name`.
  static Result<Map> open(const std::string& directory, std::string name);

  template <class Key, class Value>
  Result<> set(const Key& key, const Value& value) {
    return set_bytes(&key, &value);
  }
  // Not an error if there is no entry.
  template <class Key>
  Result<> erase(const Key& key) {
    return erase_bytes(&key);
  }
  template <class Value, class Key>
  bool get(const Key& key, Value& out) const {
    return get_bytes(&key, &out);
  }
  template <class Key>
  std::vector<Key> keys() const {
    std::vector<Key> all;
    Key key;
    for (bool more = next_bytes(nullptr, &key); more; more = next_bytes(&key, &key)) {
      all.push_back(key);
      if (all.size() > 1'000'000) break;  // an entry deleted meanwhile restarts the iteration
    }
    return all;
  }
  // Per-CPU arrays of u64: the sum over CPUs of each of the first `count` entries.
  std::vector<uint64_t> sums(uint32_t count) const;

  int fd() const { return fd_.get(); }
  const std::string& name() const { return name_; }

 private:
  Map(Fd fd, std::string name) : fd_(std::move(fd)), name_(std::move(name)) {}
  Result<> set_bytes(const void* key, const void* value);
  Result<> erase_bytes(const void* key);
  bool get_bytes(const void* key, void* out) const;
  bool next_bytes(const void* key, void* next) const;

  Fd fd_;
  std::string name_;
};

}  // namespace nodemesh::kernel

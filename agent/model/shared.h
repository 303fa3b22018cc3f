// A reference to published, immutable data: a shared_ptr<const T> whose == compares what it points to. So
// structs that share parts keep plain value equality, and an unchanged part can be reused by the next
// generation. Any thread.
#pragma once

#include <cstddef>
#include <memory>
#include <utility>

namespace nodemesh::model {

template <class T>
class Shared : public std::shared_ptr<const T> {
 public:
  using std::shared_ptr<const T>::shared_ptr;
  Shared() = default;
  Shared(std::shared_ptr<const T> ptr) : std::shared_ptr<const T>(std::move(ptr)) {}

  friend bool operator==(const Shared& a, const Shared& b) {
    return a.get() == b.get() || (a && b && *a == *b);
  }
  friend bool operator==(const Shared& a, std::nullptr_t) { return a.get() == nullptr; }
};

}  // namespace nodemesh::model

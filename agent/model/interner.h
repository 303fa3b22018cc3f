// Equal values held once: whoever reads the same words in thousands of objects gets the one that is there
// already. What nobody else holds any more goes by and by. Owned and used by one thread; what it gives out is
// immutable, and any thread may hold it and let it go.
#pragma once

#include <algorithm>
#include <memory>
#include <set>
#include <string_view>
#include <typeindex>
#include <unordered_map>
#include <utility>

#include "base/text.h"
#include "model/shared.h"

namespace nodemesh::model {

class Interner {
 public:
  // The value that equals this one and came first. T has an order. O(log n).
  template <class T>
  Shared<T> one(T value) {
    auto& table = tables_[typeid(T)];
    if (!table) table = std::make_unique<ValuesOf<T>>();
    auto make = [&] { return std::make_shared<const T>(std::move(value)); };
    return static_cast<ValuesOf<T>&>(*table).one(value, make);
  }
  Text text(std::string_view text) {
    return texts_.one(text, [&] { return Text(text); });
  }

 private:
  struct Table {
    virtual ~Table() = default;
  };
  template <class T, class Held>
  struct TableOf final : Table {
    struct Less {
      using is_transparent = void;
      static const T& value(const T& value) { return value; }
      static T value(const Text& held) { return held; }
      template <class U>
      static const U& value(const Shared<U>& held) {
        return *held;
      }
      bool operator()(const auto& a, const auto& b) const { return value(a) < value(b); }
    };
    Held one(const T& value, auto&& make) {
      auto found = held.find(value);
      if (found != held.end()) return *found;
      if (held.size() >= sweep_at) sweep();
      return *held.insert(make()).first;
    }
    void sweep() {
      std::erase_if(held, [](const auto& one) { return alone(one); });
      sweep_at = std::max<size_t>(2 * held.size(), 64);
    }
    // Only we could give out anew what only we hold, so nobody takes it meanwhile.
    static bool alone(const Text& one) { return one.alone(); }
    static bool alone(const auto& one) { return one.use_count() == 1; }

    std::set<Held, Less> held;
    size_t sweep_at = 64;
  };
  template <class T>
  using ValuesOf = TableOf<T, Shared<T>>;

  TableOf<std::string_view, Text> texts_;
  std::unordered_map<std::type_index, std::unique_ptr<Table>> tables_;
};

}  // namespace nodemesh::model

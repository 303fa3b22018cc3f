// Values by address range: the value of the longest range that holds an address, in one hash lookup for each
// length in use. Built once, then read; any thread.
#pragma once

#include <functional>
#include <map>
#include <unordered_map>

#include "base/addr.h"

namespace nodemesh {

template <class T>
class CidrMap {
 public:
  // The range's value, to be set by the caller; a fresh one is T{}. `added` says whether it is fresh.
  std::pair<T&, bool> add(const Cidr& range) {
    auto [at, added] = by_bits_[range.bits].try_emplace(range.network);
    return {at->second, added};
  }
  // Null: in no range.
  const T* find(const Addr& address) const {
    for (const auto& [bits, networks] : by_bits_) {
      if (bits < 96 && address.is_v4()) break;  // as Cidr::contains
      auto found = networks.find(address.masked(bits));
      if (found != networks.end()) return &found->second;
    }
    return nullptr;
  }

 private:
  std::map<uint8_t, std::unordered_map<Addr, T>, std::greater<>> by_bits_;  // longest first
};

}  // namespace nodemesh

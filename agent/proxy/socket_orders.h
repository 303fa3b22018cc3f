// Which worker asked the warden for which sockets. The warden answers when it can, which is not always in the
// order of the questions: it refuses at once and makes sockets later. Control thread only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <vector>

#include "warden/message.h"

namespace nodemesh::proxy {

struct SocketOrder {
  size_t worker = 0;
  uint64_t cookie = 0;  // of the pod's network namespace
  warden::SocketKind kind{};
  bool operator==(const SocketOrder&) const = default;
};

class SocketOrders {
 public:
  // `request` is the number under which the channel asked (WANT_SOCKETS).
  void add(uint32_t request, const SocketOrder& order) { open_[request] = order; }
  // Whose answer that is; once. Empty when nobody asked under that number.
  std::optional<SocketOrder> take(uint32_t request);
  // All that are open: the warden that they were given to is away.
  std::vector<SocketOrder> take_all();

 private:
  std::map<uint32_t, SocketOrder> open_;
};

}  // namespace nodemesh::proxy

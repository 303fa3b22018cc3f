#include "proxy/socket_orders.h"

#include <utility>

namespace nodemesh::proxy {

std::optional<SocketOrder> SocketOrders::take(uint32_t request) {
  auto found = open_.extract(request);
  if (found.empty()) return std::nullopt;
  return found.mapped();
}

std::vector<SocketOrder> SocketOrders::take_all() {
  std::vector<SocketOrder> all;
  for (const auto& [request, order] : std::exchange(open_, {})) all.push_back(order);
  return all;
}

}  // namespace nodemesh::proxy

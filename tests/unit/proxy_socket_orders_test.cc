// Which worker an answer of the warden belongs to.
#include <doctest/doctest.h>

#include <optional>
#include <vector>

#include "proxy/socket_orders.h"

using namespace nodemesh;
using namespace nodemesh::proxy;
using warden::SocketKind;

TEST_CASE("an answer goes to the worker that asked, in whatever order the answers come, and once") {
  SocketOrders orders;
  const SocketOrder first{0, 42, SocketKind::in}, second{1, 42, SocketKind::in};
  orders.add(7, first);
  orders.add(8, second);
  CHECK(orders.take(8) == second);
  CHECK(orders.take(7) == first);
  CHECK(orders.take(7) == std::nullopt);
  CHECK(orders.take(9) == std::nullopt);
}

TEST_CASE("the orders of a warden that is away are all given up") {
  SocketOrders orders;
  orders.add(1, {0, 42, SocketKind::in});
  orders.add(2, {1, 43, SocketKind::out});
  CHECK(orders.take_all().size() == 2);
  CHECK(orders.take_all().empty());
  CHECK(orders.take(1) == std::nullopt);
}

// Endpoint choice and the stock of sockets.
#include <doctest/doctest.h>

#include <fcntl.h>

#include <map>
#include <set>
#include <string>
#include <vector>

#include "upstream/balancer.h"
#include "upstream/stock.h"

using namespace nodemesh;
using namespace nodemesh::upstream;

namespace {

model::ServicePort port_with(size_t endpoints, model::LbPolicy policy = model::LbPolicy::least_request) {
  model::ServicePort port{.port = 80, .lb = policy};
  for (size_t i = 0; i < endpoints; ++i) {
    port.endpoints.push_back({.address = Addr::v4(10, 0, 1, static_cast<uint8_t>(i + 1)), .port = 8080});
  }
  port.usable_v4 = static_cast<uint32_t>(endpoints);
  return port;
}

const Addr kVip = Addr::v4(10, 96, 0, 1), kClient = Addr::v4(10, 0, 0, 9);

struct Waiter final : SocketWaiter {
  void on_socket(Fd socket) override {
    ++sockets;
    taken = std::move(socket);
    if (then) then();
  }
  void on_no_socket(const Error& error) override {
    ++refusals;
    why = error.reason;
    if (then) then();
  }
  int sockets = 0, refusals = 0;
  Reason why = Reason::NONE;
  Fd taken;
  std::function<void()> then;
};

struct Asked {
  SocketStock stock{[this](warden::SocketKind kind, uint32_t count) { asks.emplace_back(kind, count); }};
  std::vector<std::pair<warden::SocketKind, uint32_t>> asks;
  Monotonic::time_point now = Monotonic::time_point(seconds(1000));
  Fd take(Waiter* waiter, warden::SocketKind kind = warden::SocketKind::out) {
    return stock.take(kind, now, waiter);
  }
};

std::vector<Fd> some(size_t count) {
  std::vector<Fd> out;
  for (size_t i = 0; i < count; ++i) out.emplace_back(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  return out;
}

}  // namespace

TEST_CASE("every policy chooses only endpoints that exist, and in time each of them") {
  for (auto policy : lb_policies()) {
    CAPTURE(model::lb_policy_name(policy));
    for (size_t count : {1, 2, 3, 7, 100}) {
      auto port = port_with(count, policy);
      PortLoad load;
      std::mt19937_64 random(1);
      std::set<size_t> seen;
      for (size_t i = 0; i < count * 50; ++i) {
        size_t index = lb_function(policy)(port.endpoints, load, random());
        REQUIRE(index < count);
        seen.insert(index);
        load.picks += 1;
      }
      CHECK(seen.size() == count);
      for (uint64_t extreme :
           {uint64_t{0}, ~uint64_t{0}, uint64_t{0xffffffff}, uint64_t{0xffffffff00000000}}) {
        CHECK(lb_function(policy)(port.endpoints, load, extreme) < count);
      }
    }
  }
}

TEST_CASE("every policy spreads connections that stay open evenly enough") {
  for (auto policy : lb_policies()) {
    CAPTURE(model::lb_policy_name(policy));
    Balancer balancer(7);
    model::Service service{.host = "s.ns.svc.cluster.local"};
    auto port = port_with(5, policy);
    std::vector<EndpointHold> holds;
    std::map<SockAddr, int> open;
    for (int i = 0; i < 1000; ++i) {
      const auto* endpoint = balancer.pick(service, port, kVip, kClient);
      REQUIRE(endpoint != nullptr);
      holds.push_back(balancer.hold(service, port, *endpoint));
      ++open[endpoint->target()];
    }
    for (const auto& [endpoint, count] : open) {
      CHECK(count > 130);
      CHECK(count < 270);
    }
  }
}

TEST_CASE("least request goes to the less loaded of two, and back when connections end") {
  Balancer balancer(3);
  model::Service service{.host = "s.ns.svc.cluster.local"};
  auto port = port_with(2);
  std::vector<EndpointHold> holds;
  for (int i = 0; i < 20; ++i) holds.push_back(balancer.hold(service, port, port.endpoints[0]));
  for (int i = 0; i < 20; ++i) CHECK(balancer.pick(service, port, kVip, kClient) == &port.endpoints[1]);
  holds.clear();
  for (int i = 0; i < 20; ++i) holds.push_back(balancer.hold(service, port, port.endpoints[1]));
  for (int i = 0; i < 20; ++i) CHECK(balancer.pick(service, port, kVip, kClient) == &port.endpoints[0]);
  auto moved = std::move(holds.front());
  holds.front() = EndpointHold();
  holds.clear();
  moved = EndpointHold();
  balancer.forget_unused();
}

TEST_CASE("a hold may outlive what the balancer remembers") {
  EndpointHold hold;
  {
    Balancer balancer(3);
    model::Service service{.host = "s.ns.svc.cluster.local"};
    auto port = port_with(2);
    hold = balancer.hold(service, port, port.endpoints[0]);
    balancer.forget_unused();
    for (int i = 0; i < 20; ++i) CHECK(balancer.pick(service, port, kVip, kClient) == &port.endpoints[1]);
  }
}

TEST_CASE("round robin takes its turns") {
  Balancer balancer(3);
  model::Service service{.host = "s.ns.svc.cluster.local"};
  auto port = port_with(3, model::LbPolicy::round_robin);
  for (size_t i = 0; i < 9; ++i) CHECK(balancer.pick(service, port, kVip, kClient) == &port.endpoints[i % 3]);
}

TEST_CASE("nothing usable is null, one usable needs no choice, the dialled family comes first") {
  Balancer balancer(3);
  model::Service service{.host = "s.ns.svc.cluster.local"};
  auto none = port_with(3);
  none.usable_v4 = 0;
  CHECK(balancer.pick(service, none, kVip, kClient) == nullptr);
  auto one = port_with(1);
  CHECK(balancer.pick(service, one, kVip, kClient) == &one.endpoints[0]);
  auto both = port_with(2);
  both.usable_v4 = both.usable_v6 = 1;
  both.endpoints[1].address = *Addr::parse("fd00::1");
  CHECK(balancer.pick(service, both, kVip, kClient) == &both.endpoints[0]);
  CHECK(balancer.pick(service, both, *Addr::parse("fd00::99"), kClient) == &both.endpoints[1]);
}

TEST_CASE(
    "with affinity a client keeps its endpoint, clients spread, and a lost endpoint moves only its own") {
  Balancer balancer(3);
  model::Service service{.host = "s.ns.svc.cluster.local", .client_ip_affinity = seconds(10800)};
  auto port = port_with(5);
  std::map<Addr, SockAddr> kept;
  std::map<SockAddr, int> clients;
  for (uint8_t i = 0; i < 250; ++i) {
    Addr client = Addr::v4(10, 0, 7, i);
    kept[client] = balancer.pick(service, port, kVip, client)->target();
    ++clients[kept[client]];
    CHECK(balancer.pick(service, port, kVip, client)->target() == kept[client]);
  }
  CHECK(clients.size() == 5);
  for (const auto& [endpoint, count] : clients) CHECK(count > 20);
  auto lost = port.endpoints[2].target();
  port.endpoints.erase(port.endpoints.begin() + 2);
  port.usable_v4 = 4;
  for (const auto& [client, endpoint] : kept) {
    auto now = balancer.pick(service, port, kVip, client)->target();
    if (endpoint != lost) CHECK(now == endpoint);
  }
}

TEST_CASE("the first take waits, asks once for a batch, and is served first") {
  Asked asked;
  Waiter first, second;
  CHECK(!asked.take(&first));
  CHECK(!asked.take(&second));
  REQUIRE(asked.asks.size() == 1);
  CHECK(asked.asks[0].second == 4);
  asked.stock.add(warden::SocketKind::out, some(1));
  CHECK((first.sockets == 1 && second.sockets == 0));
  CHECK(asked.asks.size() == 2);  // somebody still waits
  asked.stock.add(warden::SocketKind::out, some(4));
  CHECK(second.sockets == 1);
  CHECK(asked.take(nullptr));
}

TEST_CASE("kinds are apart") {
  Asked asked;
  Waiter out, in;
  asked.take(&out, warden::SocketKind::out);
  asked.take(&in, warden::SocketKind::in);
  asked.stock.add(warden::SocketKind::in, some(4));
  CHECK((out.sockets == 0 && in.sockets == 1));
}

TEST_CASE("batches grow while sockets go faster than they come, up to the channel's limit") {
  Asked asked;
  for (int i = 0; i < 20; ++i) {
    asked.now += milliseconds(1);
    Waiter waiter;
    while (asked.take(nullptr)) {
    }
    uint32_t count = asked.asks.back().second;
    CHECK(count <= warden::kMaxSocketBatch);
    asked.stock.add(warden::SocketKind::out, some(count));
  }
  CHECK(asked.asks.back().second == warden::kMaxSocketBatch);
}

TEST_CASE("who cancelled is not called, even from within the call of another waiter") {
  Asked asked;
  Waiter first, second, third;
  first.then = [&] { asked.stock.cancel(second); };
  for (auto* waiter : {&first, &second, &third}) asked.take(waiter);
  SUBCASE("when sockets come") {
    asked.stock.add(warden::SocketKind::out, some(4));
    CHECK((first.sockets == 1 && second.sockets == 0 && third.sockets == 1));
  }
  SUBCASE("when none come") {
    asked.stock.none(warden::SocketKind::out, {Reason::NO_SOCKET, ""});
    CHECK((first.refusals == 1 && second.refusals == 0 && third.refusals == 1));
  }
  SUBCASE("when the pod goes") {
    asked.stock.clear({Reason::POD_GONE, ""});
    CHECK((first.refusals == 1 && second.refusals == 0 && third.refusals == 1));
    CHECK(first.why == Reason::POD_GONE);
  }
}

TEST_CASE("a refusal is followed by a new question when somebody asks again") {
  Asked asked;
  Waiter waiter;
  asked.take(&waiter);
  asked.stock.none(warden::SocketKind::out, {Reason::NO_SOCKET, ""});
  asked.take(&waiter);
  CHECK(asked.asks.size() == 2);
  asked.stock.add(warden::SocketKind::out, some(4));
  CHECK((waiter.refusals == 1 && waiter.sockets == 1));
}

TEST_CASE("unused sockets are closed after a minute, used ones stay") {
  Asked asked;
  asked.take(nullptr);
  auto sockets = some(4);
  int number = sockets.front().get();
  asked.stock.add(warden::SocketKind::out, std::move(sockets));
  asked.stock.trim(asked.now + seconds(59));
  CHECK(::fcntl(number, F_GETFD) != -1);
  asked.stock.trim(asked.now + seconds(61));
  CHECK(::fcntl(number, F_GETFD) == -1);
}

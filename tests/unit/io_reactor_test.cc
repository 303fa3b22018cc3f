// The event loop: order within a turn, and who may remove whom while it runs.
#include <doctest/doctest.h>

#include <sys/eventfd.h>

#include <optional>
#include <string>
#include <thread>

#include "io/mailbox.h"
#include "io/reactor.h"

using namespace nodemesh;
using namespace nodemesh::io;

namespace {

struct Watched final : EventHandler {
  Watched(Reactor& of, std::function<void()> what) : reactor(of), run(std::move(what)) {
    fd = Fd(::eventfd(1, EFD_CLOEXEC | EFD_NONBLOCK));
    REQUIRE(reactor.add(fd.get(), *this, EPOLLIN));
  }
  ~Watched() { reactor.remove(fd.get(), *this); }
  void on_events(uint32_t) override { run(); }
  Reactor& reactor;
  std::function<void()> run;
  Fd fd;
};

template <class Done>
void turn_until(Reactor& reactor, Done done) {
  auto until = Monotonic::now() + seconds(10);
  while (!done() && Monotonic::now() < until) reactor.run_once(milliseconds(20));
  REQUIRE(done());
}

}  // namespace

TEST_CASE("a turn handles events, then posted work, then timers, then deferred work") {
  Reactor reactor;
  std::string order;
  Timer timer([&] { order += 't'; });
  Deferred deferred([&] { order += 'd'; });
  Watched watched(reactor, [&] {
    order += 'e';
    deferred.schedule(reactor);
    deferred.schedule(reactor);
    timer.arm(reactor, milliseconds(0));
    reactor.post([&] { order += 'p'; });
  });
  reactor.run_once(milliseconds(1000));
  CHECK(order == "eptd");
}

TEST_CASE("a handler that another one removes and destroys in the same turn is not called") {
  Reactor reactor;
  int calls = 0;
  std::optional<Watched> first, second;
  first.emplace(reactor, [&] { ++calls, second.reset(); });
  second.emplace(reactor, [&] { ++calls, first.reset(); });
  reactor.run_once(milliseconds(1000));
  CHECK(calls == 1);
  CHECK(first.has_value() != second.has_value());
}

TEST_CASE("a handler may destroy itself") {
  Reactor reactor;
  auto* self = new Watched(reactor, [] {});
  bool called = false;
  self->run = [&] {
    called = true;
    delete self;
  };
  reactor.run_once(milliseconds(1000));
  CHECK(called);
}

TEST_CASE("timers fire in the order in which they are due, and not before") {
  Reactor reactor;
  std::string order;
  auto start = Monotonic::now();
  Monotonic::duration last{};
  Timer late([&] { order += 'c', last = Monotonic::now() - start; });
  Timer soon([&] { order += 'a'; }), middle([&] { order += 'b'; }), never([&] { order += 'x'; });
  late.arm(reactor, milliseconds(30));
  never.arm(reactor, milliseconds(5));
  soon.arm(reactor, milliseconds(10));
  middle.arm(reactor, milliseconds(20));
  never.cancel();
  CHECK(!never.armed());
  turn_until(reactor, [&] { return order.size() == 3; });
  CHECK(order == "abc");
  CHECK(last >= milliseconds(29));
}

TEST_CASE("arming a timer again moves it") {
  Reactor reactor;
  int fired = 0;
  Timer timer([&] { ++fired; });
  timer.arm(reactor, seconds(3600));
  timer.arm(reactor, milliseconds(1));
  turn_until(reactor, [&] { return fired == 1; });
  CHECK(!timer.armed());
}

TEST_CASE("a timer that arms itself for at once fires once a turn, and the turn ends") {
  Reactor reactor;
  int fired = 0;
  std::optional<Timer> timer;
  timer.emplace([&] {
    if (++fired < 1000) timer->arm(reactor, milliseconds(0));
  });
  timer->arm(reactor, milliseconds(0));
  reactor.run_once(milliseconds(100));
  CHECK(fired == 1);
  reactor.run_once(milliseconds(100));
  CHECK(fired == 2);
}

TEST_CASE("a timer's callback may destroy that timer and others that are due") {
  Reactor reactor;
  int fired = 0;
  std::optional<Timer> first, second;
  first.emplace([&] { ++fired, first.reset(), second.reset(); });
  second.emplace([&] { ++fired, second.reset(), first.reset(); });
  first->arm(reactor, milliseconds(0));
  second->arm(reactor, milliseconds(0));
  reactor.run_once(milliseconds(100));
  CHECK(fired == 1);
}

TEST_CASE("many timers cancelled in any order leave the others in order") {
  Reactor reactor;
  std::vector<int> fired;
  std::vector<std::unique_ptr<Timer>> timers;
  for (int i = 0; i < 200; ++i) {
    int due = (i * 37) % 200;
    timers.push_back(std::make_unique<Timer>([&fired, due] { fired.push_back(due); }));
    timers.back()->arm(reactor, milliseconds(due / 8));
  }
  for (size_t i = 0; i < timers.size(); i += 3) timers[i].reset();
  turn_until(reactor, [&] { return fired.size() == 133; });
  for (size_t i = 1; i < fired.size(); ++i) CHECK(fired[i - 1] / 8 <= fired[i] / 8);
}

TEST_CASE("deferred work that is destroyed before the end of the turn does not run") {
  Reactor reactor;
  int ran = 0;
  std::optional<Deferred> gone;
  gone.emplace([&] { ran += 100; });
  Deferred kills([&] { ++ran, gone.reset(); });
  kills.schedule(reactor);
  gone->schedule(reactor);
  reactor.run_once(milliseconds(100));
  CHECK(ran == 1);
}

TEST_CASE("deferred work that schedules itself runs once a turn, without a wait between") {
  Reactor reactor;
  int ran = 0;
  std::optional<Deferred> self;
  self.emplace([&] {
    if (++ran < 5) self->schedule(reactor);
  });
  self->schedule(reactor);
  reactor.run_once(seconds(60));
  CHECK(ran == 1);
  for (int i = 0; i < 4; ++i) reactor.run_once(seconds(60));
  CHECK(ran == 5);
}

TEST_CASE("deferred work that another item schedules and destroys in the next turn's list does not run") {
  Reactor reactor;
  int ran = 0;
  std::optional<Deferred> later;
  later.emplace([&] { ran += 100; });
  Deferred schedules([&] { later->schedule(reactor); });
  schedules.schedule(reactor);
  reactor.run_once(milliseconds(10));
  later.reset();
  reactor.run_once(milliseconds(10));
  CHECK(ran == 0);
}

TEST_CASE("what posted work posts runs in the next turn") {
  Reactor reactor;
  std::string order;
  Watched watched(reactor, [&] {
    reactor.post([&] {
      order += 'a';
      reactor.post([&] { order += 'b'; });
    });
  });
  reactor.run_once(milliseconds(1000));
  CHECK(order == "a");
  reactor.run_once(seconds(60));
  CHECK(order == "ab");
}

TEST_CASE("timers and deferred work may outlive their reactor") {
  Timer timer([] {});
  Deferred deferred([] {});
  {
    Reactor reactor;
    timer.arm(reactor, seconds(1));
    deferred.schedule(reactor);
  }
  CHECK(!timer.armed());
}

TEST_CASE("a mailbox runs what other threads post, in the order of each of them") {
  Reactor reactor;
  Mailbox mailbox(reactor);
  constexpr int kEach = 2000;
  std::array<int, 2> seen{};
  bool in_order = true;
  std::vector<std::jthread> threads;
  for (size_t t = 0; t < 2; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < kEach; ++i) {
        mailbox.post([&, t, i] {
          in_order = in_order && seen[t] == i;
          seen[t] = i + 1;
        });
      }
    });
  }
  turn_until(reactor, [&] { return seen[0] == kEach && seen[1] == kEach; });
  CHECK(in_order);
}

TEST_CASE("work left in a mailbox is destroyed with it and does not run") {
  auto owned = std::make_shared<int>(0);
  bool ran = false;
  {
    Reactor reactor;
    Mailbox mailbox(reactor);
    mailbox.post([owned, &ran] { ran = true; });
    CHECK(owned.use_count() == 2);
  }
  CHECK(owned.use_count() == 1);
  CHECK(!ran);
}

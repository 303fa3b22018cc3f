// The leader's election, two replicas against one API server in memory and a clock that the test moves.
#include <doctest/doctest.h>

#include "controller/lease.h"
#include "controller/time_text.h"
#include "unit/controller_api.h"

using namespace nodemesh;
using namespace nodemesh::controller;

namespace {

constexpr auto kPath = "/apis/coordination.k8s.io/v1/namespaces/mesh/leases/nodemesh-controller";

// Attempts are made by hand: start() is one attempt, and the reactor's own timers never get a turn.
struct Replica {
  Replica(io::Reactor& reactor, const Clock& clock, test::FakeApi& api, const std::string& name)
      : lease(reactor, clock, api, {.ns = "mesh", .name = "nodemesh-controller", .identity = name, .seed = 1},
              [this](bool now) {
                leads = now;
                ++changes;
              }) {}
  bool leads = false;
  int changes = 0;
  Lease lease;
};

struct Fixture {
  io::Reactor reactor;
  ManualClock clock;
  test::FakeApi api;
  Replica a{reactor, clock, api, "a"}, b{reactor, clock, api, "b"};
  void attempt(Replica& who) {
    who.lease.start();
    api.answer_all();
  }
  Json spec() { return api.objects.at(kPath)["spec"]; }
};

}  // namespace

TEST_CASE_FIXTURE(Fixture, "the first replica creates the lease and leads, the second waits") {
  attempt(a);
  CHECK(a.leads);
  CHECK(spec()["holderIdentity"] == "a");
  CHECK(spec()["leaseDurationSeconds"] == 15);
  CHECK(read_time(spec()["renewTime"].get<std::string>()));
  attempt(b);
  CHECK_FALSE(b.leads);
  CHECK(b.lease.holder() == "a");
  CHECK(api.count("PUT") == 0);
}

TEST_CASE_FIXTURE(Fixture, "of two that create at once one gets a conflict and follows") {
  a.lease.start();
  b.lease.start();
  api.answer();  // both read: there is none
  api.answer();
  api.answer_all();  // both create
  CHECK(a.leads);
  CHECK_FALSE(b.leads);
}

TEST_CASE_FIXTURE(Fixture, "a leader that renews keeps the lease for ever") {
  attempt(a);
  attempt(b);
  for (int i = 0; i < 30; ++i) {
    clock.advance(seconds(4));
    attempt(a);
    attempt(b);
    CHECK(a.leads);
    CHECK_FALSE(b.leads);
  }
  CHECK(a.changes == 1);
  CHECK(spec()["leaseTransitions"] == 0);
}

TEST_CASE_FIXTURE(Fixture, "a lease that nobody renews is taken after its duration by our own clock") {
  attempt(a);
  // The times in it are nonsense: a holder's clock is not ours.
  Json lease = api.objects[kPath];
  lease["spec"]["renewTime"] = "1999-01-01T00:00:00.000000Z";
  api.put(kPath, lease);
  clock.advance(seconds(100));
  attempt(b);  // the first look
  CHECK_FALSE(b.leads);
  clock.advance(seconds(14));
  attempt(b);
  CHECK_FALSE(b.leads);
  clock.advance(seconds(1));
  attempt(b);
  CHECK(b.leads);
  CHECK(spec()["holderIdentity"] == "b");
  CHECK(spec()["leaseTransitions"] == 1);
}

TEST_CASE_FIXTURE(Fixture, "two that take a stale lease at once: the resourceVersion lets one through") {
  api.put(kPath, {{"metadata", {{"name", "nodemesh-controller"}}},
                  {"spec", {{"holderIdentity", "gone"}, {"leaseDurationSeconds", 15}}}});
  attempt(a);
  attempt(b);
  clock.advance(seconds(15));
  a.lease.start();
  b.lease.start();
  api.answer_all();
  CHECK(a.leads);
  CHECK_FALSE(b.leads);
  attempt(b);
  CHECK_FALSE(b.leads);
}

TEST_CASE_FIXTURE(Fixture, "a lease without a holder, or with fields of other types, is free") {
  api.put(kPath,
          {{"metadata", {{"name", "nodemesh-controller"}}},
           {"spec", {{"holderIdentity", 7}, {"leaseDurationSeconds", "x"}, {"leaseTransitions", nullptr}}}});
  attempt(a);
  CHECK(a.leads);
}

TEST_CASE_FIXTURE(Fixture, "a leader whose lease was taken stops at its next attempt") {
  attempt(a);
  Json lease = api.objects[kPath];
  lease["spec"]["holderIdentity"] = "b";
  api.put(kPath, lease);
  attempt(a);
  CHECK_FALSE(a.leads);
  CHECK(a.changes == 2);
}

TEST_CASE("a leader that cannot renew stops leading before another may begin") {
  io::Reactor reactor;
  Clock clock;
  test::FakeApi api;
  bool leads = false;
  Lease lease(reactor, clock, api,
              {.ns = "mesh",
               .name = "nodemesh-controller",
               .identity = "a",
               .renew_deadline = seconds(1),
               .retry = milliseconds(50)},
              [&](bool now) { leads = now; });
  lease.start();
  api.answer_all();
  REQUIRE(leads);
  api.broken[kPath] = 0;
  auto deadline = Monotonic::now() + seconds(20);
  while (leads && Monotonic::now() < deadline) {
    reactor.run_once(milliseconds(20));
    api.answer_all();
  }
  CHECK_FALSE(leads);
  CHECK(api.count("GET") > 2);  // it keeps trying
  api.broken.clear();
  while (!leads && Monotonic::now() < deadline) {
    reactor.run_once(milliseconds(20));
    api.answer_all();
  }
  CHECK(leads);
}

TEST_CASE_FIXTURE(Fixture, "a write that is answered later than the deadline makes nobody a leader") {
  a.lease.start();
  api.answer();  // there is none; it creates
  clock.advance(seconds(11));
  api.answer();
  CHECK_FALSE(a.leads);
  CHECK(a.changes == 0);
  attempt(a);  // the lease is its own by then
  CHECK(a.leads);
}

TEST_CASE_FIXTURE(Fixture, "a replica that stops gives the lease up, and the next leads at once") {
  attempt(a);
  attempt(b);
  bool released = false;
  a.lease.release([&] { released = true; });
  CHECK_FALSE(a.leads);
  api.answer_all();
  CHECK(released);
  CHECK(spec()["holderIdentity"] == "");
  attempt(b);
  CHECK(b.leads);
  released = false;
  a.lease.release([&] { released = true; });  // it does not lead: nothing is written
  CHECK(released);
  CHECK(spec()["holderIdentity"] == "b");
}

TEST_CASE_FIXTURE(Fixture,
                  "a lease is given up even with a renewal under way, but not one that another has") {
  attempt(a);
  a.lease.start();
  api.answer();  // it has read, and renews
  bool released = false;
  a.lease.release([&] { released = true; });
  api.answer_all();
  CHECK(released);
  CHECK(spec()["holderIdentity"] == "");
  attempt(b);
  REQUIRE(b.leads);
  Json lease = api.objects[kPath];
  lease["spec"]["holderIdentity"] = "a";
  api.put(kPath, lease);
  released = false;
  b.lease.release([&] { released = true; });
  api.answer_all();
  CHECK(released);
  CHECK(spec()["holderIdentity"] == "a");
}

TEST_CASE_FIXTURE(Fixture, "a lease that changes at each attempt is tried to be given up once more only") {
  attempt(a);
  bool released = false;
  a.lease.release([&] { released = true; });
  size_t writes = api.count("PUT");
  for (int i = 0; i < 10 && !released; ++i) {
    if (api.asked.front().verb == kube::Verb::put) api.put(kPath, api.objects[kPath]);
    api.answer();
  }
  CHECK(released);
  CHECK(api.count("PUT") == writes + 1);
}

TEST_CASE("times are read and written as Kubernetes has them") {
  auto time = WallClock::from_time_t(1'700'000'000) + std::chrono::microseconds(123456);
  CHECK(write_time(time) == "2023-11-14T22:13:20.123456Z");
  CHECK(*read_time("2023-11-14T22:13:20.123456Z") == WallClock::from_time_t(1'700'000'000));
  CHECK(*read_time("2023-11-14T22:13:20Z") == WallClock::from_time_t(1'700'000'000));
  for (const char* bad :
       {"", "now", "2023-11-14T22:13:20", "2023-11-14T22:13:20+01:00", "2023-11-14T22:13:20.1Zx"})
    CHECK_FALSE(read_time(bad));
}

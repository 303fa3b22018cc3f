// Which replica leads: a coordination.k8s.io/v1 Lease, held by client-go's rules (leaderelection.go), so that
// any two versions of ours agree. Another's lease is never judged by the times written in it, since clocks
// differ: it has run out when it was not seen to change for its duration by our own clock. Every write
// carries the resourceVersion that was read, so of two that try at once one gets a conflict. A leader that
// cannot renew for 10 s stops leading, 5 s before another may begin. Main thread only.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <random>
#include <string>

#include "base/clock.h"
#include "controller/api.h"
#include "io/reactor.h"

namespace nodemesh::controller {

// What only one replica may do at a time.
class LeaderDuty {
 public:
  virtual ~LeaderDuty() = default;
  virtual void begin() = 0;  // may be called again after end()
  virtual void end() = 0;    // at once: no request may be sent after it
};

class Lease {
 public:
  struct Settings {
    std::string ns, name;
    std::string identity;  // of this replica: the Pod's name; unique
    seconds duration{15};
    seconds renew_deadline{10};
    milliseconds retry{2'000};  // and up to a fifth more
    uint64_t seed = 0;          // of the jitter; 0: from the system
  };
  using OnChange = std::function<void(bool leads)>;
  using Released = std::move_only_function<void()>;
  // All references outlive it. `on_change` may not destroy it.
  Lease(io::Reactor& reactor, const Clock& clock, Api& api, Settings settings, OnChange on_change);
  Lease(const Lease&) = delete;
  Lease& operator=(const Lease&) = delete;

  void start() { attempt(); }
  // Gives the lease up, so that the next need not wait for it to run out. `done` runs when the server has it
  // or will not take it, or at once when we do not lead; nothing else is attempted after this.
  void release(Released done);
  bool leads() const { return leads_; }
  const std::string& holder() const { return holder_; }  // as last seen; empty: nobody

 private:
  void attempt();
  void on_read(ApiReply reply);
  void create();
  void take(Json lease);
  void write(kube::Verb verb, std::string path, Json lease);
  void on_written(Monotonic::time_point asked, const ApiReply& reply);
  void observe(const Json& lease);
  bool runs_out(const Json& lease) const;
  void give_up(Json lease, bool again, Released done);
  void read_and_give_up(Released done);
  void settle(bool renewed, Monotonic::time_point at);
  void rest();
  void check_deadline();
  std::string path() const;
  Json spec(const Json& before, bool taking) const;

  io::Reactor& reactor_;
  const Clock& clock_;
  Api& api_;
  const Settings settings_;
  OnChange on_change_;
  bool leads_ = false, stopped_ = false;
  std::string holder_;
  std::string seen_;                              // the spec as last read
  std::optional<Monotonic::time_point> seen_at_;  // when it was first seen so
  Monotonic::time_point renewed_at_{};            // when the last successful write was asked for
  Json lease_;                                    // as last read or written
  std::mt19937_64 random_;
  io::Timer timer_{[this] { attempt(); }};
  io::Timer deadline_{[this] { check_deadline(); }};
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

}  // namespace nodemesh::controller

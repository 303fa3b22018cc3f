// Writes to many objects of many tenants: one request at a time, a moment between two, namespaces in turn, so
// that thousands of objects of one do not keep another's waiting. An object is written at most once a second;
// where the write does not last, since somebody else writes as well, the pause before the next doubles, so
// that two controllers that disagree do not wear the API server out. Main thread only.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <tuple>

#include "base/clock.h"
#include "io/reactor.h"

namespace nodemesh::controller {

class PacedWrites {
 public:
  using Key = std::tuple<std::string, std::string, std::string>;  // namespace, kind, name
  enum class Outcome : uint8_t {
    done,     // written
    nothing,  // there was nothing to write
    again,    // failed: later
  };
  using Done = std::move_only_function<void(Outcome)>;
  // Begins the write; `done` runs once, perhaps within the call.
  using Write = std::function<void(const Key&, Done)>;
  struct Settings {
    milliseconds gap{50};
    milliseconds first_pause{1'000}, longest_pause{300'000};
  };
  // `reactor` and `clock` outlive it.
  PacedWrites(io::Reactor& reactor, const Clock& clock, Settings settings, Write write);
  PacedWrites(const PacedWrites&) = delete;
  PacedWrites& operator=(const PacedWrites&) = delete;

  void want(const Key& key);
  void forget(const Key& key);
  bool idle() const { return ready_.empty() && delayed_.empty() && !busy_; }
  uint64_t writes() const { return writes_; }

 private:
  struct Pace {
    milliseconds pause{0};
    Monotonic::time_point next{};  // not before
  };
  void turn();
  void begin(const Key& key);
  void on_done(const Key& key, Outcome outcome);
  void rest();
  void forget_old_paces(Monotonic::time_point now);

  io::Reactor& reactor_;
  const Clock& clock_;
  const Settings settings_;
  Write write_;
  std::set<Key> ready_;
  std::set<std::pair<Monotonic::time_point, Key>> delayed_;
  std::map<Key, Pace> paces_;
  std::string last_ns_;
  std::optional<Key> busy_;
  bool resting_ = false;       // the timer waits for one of the delayed, which others need not wait for
  bool wanted_again_ = false;  // the one that is being written
  uint64_t writes_ = 0;
  io::Timer timer_{[this] { turn(); }};
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

}  // namespace nodemesh::controller

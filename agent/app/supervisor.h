// The small process above a warden or proxy (and above both, in `meshctl node run`): starts children,
// restarts the ones that die, passes signals on, reaps everything. It holds no capability it was not given
// and reads no input, so there is nothing in it to crash. One thread; the process does nothing else while it
// runs.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <deque>
#include <functional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/reason.h"

namespace nodemesh::app {

// How long to wait before the next start: nothing for the first deaths, then 1, 5, 30 s once five deaths fall
// into ten seconds; at once again after a child has lived long enough.
class Backoff {
 public:
  explicit Backoff(const Clock& clock) : clock_(clock) {}
  // Call at each death of a child started at `started`.
  milliseconds after_death(Monotonic::time_point started);

 private:
  const Clock& clock_;
  std::deque<Monotonic::time_point> deaths_;
  size_t step_ = 0;
};

struct ChildSpec {
  std::string name;                // for the log
  std::string program;             // path, or a name to look for in PATH
  std::vector<std::string> argv;   // with argv[0]
  std::string cgroup;              // cgroup2 directory to start it in; empty: ours
  int death_signal = 9;            // what it gets when this process dies
  milliseconds stop_grace{35000};  // from the forwarded SIGTERM to SIGKILL
};

// The grace of an agent whose successor has the pods: who started it has the say.
inline constexpr milliseconds kLongestDrain = std::chrono::hours(24 * 365);

// Exit code of a program that could not start for a reason only a person can mend, already printed by it.
// When a first start ends so, the supervisor ends with it instead of trying again.
inline constexpr int kCannotStart = 1;
// The same for a command line that is wrong.
inline constexpr int kWrongUsage = 2;

// Runs the children until one of them cannot start, or SIGTERM, SIGINT or SIGHUP comes; then stops all, the
// first of `specs` first, each with its grace, and returns the exit code for the process. A second such
// signal shortens the grace to one second. `started` is told each child's pid (for tests and logs).
int supervise(std::vector<ChildSpec> specs, const Clock& clock,
              std::move_only_function<void(const ChildSpec&, pid_t)> started = {});

// Runs this program again with the same arguments and `--no-supervisor`, under supervision; of `spec` name,
// program and argv are filled in. The whole main() of a container's first process.
int supervise_self(std::string name, int argc, char** argv, ChildSpec spec);

}  // namespace nodemesh::app

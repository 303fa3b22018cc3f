#include "app/supervisor.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <optional>
#include <utility>

#include "base/log.h"

namespace nodemesh::app {
namespace {

constexpr auto kWindow = seconds(10);
constexpr size_t kDeathsAllowed = 5;
constexpr std::array<milliseconds, 3> kSteps{seconds(1), seconds(5), seconds(30)};
constexpr auto kLivedLong = seconds(60);
constexpr auto kHurried = seconds(1);

struct Child {
  ChildSpec spec;
  Backoff backoff;
  pid_t pid = -1;
  bool started_before = false;
  Monotonic::time_point started{};
  std::optional<Monotonic::time_point> start_at;  // due (re)start
};

// Between fork and exec: system calls only.
[[noreturn]] void become(const ChildSpec& spec, char* const* argv, pid_t parent, const sigset_t& mask) {
  ::prctl(PR_SET_PDEATHSIG, spec.death_signal);
  if (::getppid() != parent) ::_exit(0);
  if (!spec.cgroup.empty()) {
    int procs = ::open((spec.cgroup + "/cgroup.procs").c_str(), O_WRONLY | O_CLOEXEC);
    if (procs < 0 || ::write(procs, "0", 1) != 1) {
      log::error(log::Component::app, "cannot enter the cgroup", {{"cgroup", spec.cgroup}, {"errno", errno}});
      ::_exit(kCannotStart);
    }
    ::close(procs);
  }
  // Its own group, so that a terminal's Ctrl-C reaches the supervisor only and the order of stopping is ours.
  ::setpgid(0, 0);
  ::sigprocmask(SIG_SETMASK, &mask, nullptr);
  ::execvp(spec.program.c_str(), argv);
  log::error(log::Component::app, "cannot run the program", {{"program", spec.program}, {"errno", errno}});
  ::_exit(kCannotStart);
}

class Supervision {
 public:
  Supervision(std::vector<ChildSpec> specs, const Clock& clock,
              std::move_only_function<void(const ChildSpec&, pid_t)> started)
      : clock_(clock), started_(std::move(started)) {
    for (auto& spec : specs) {
      children_.push_back({.spec = std::move(spec), .backoff = Backoff(clock), .start_at = clock.now()});
    }
    sigemptyset(&waited_);
    for (int number : {SIGTERM, SIGINT, SIGHUP, SIGCHLD}) sigaddset(&waited_, number);
    ::sigprocmask(SIG_BLOCK, &waited_, &before_);
  }
  ~Supervision() { ::sigprocmask(SIG_SETMASK, &before_, nullptr); }

  int run() {
    while (!done()) {
      start_due();
      handle(wait_signal());
      reap();
      push_stop();
    }
    return exit_code_;
  }

 private:
  bool done() const {
    return stopping_ && std::ranges::none_of(children_, [](const Child& child) { return child.pid > 0; });
  }

  void start_due() {
    if (stopping_) return;
    for (Child& child : children_) {
      if (child.start_at && *child.start_at <= clock_.now()) start(child);
    }
  }

  void start(Child& child) {
    child.start_at.reset();
    std::vector<char*> argv;
    for (auto& word : child.spec.argv) argv.push_back(word.data());
    argv.push_back(nullptr);
    pid_t self = ::getpid();
    pid_t pid = ::fork();
    if (pid == 0) become(child.spec, argv.data(), self, before_);
    child.started = clock_.now();
    if (pid < 0) {
      log::error(log::Component::app, "cannot start a process",
                 {{"program", child.spec.name}, {"errno", errno}});
      child.start_at = clock_.now() + child.backoff.after_death(child.started) + milliseconds(100);
      return;
    }
    child.pid = pid;
    if (started_) started_(child.spec, pid);
  }

  // The next signal, or 0 when something is due.
  int wait_signal() {
    auto until = clock_.now() + seconds(60);
    for (const Child& child : children_) {
      if (child.start_at && !stopping_) until = std::min(until, *child.start_at);
    }
    if (kill_at_) until = std::min(until, *kill_at_);
    auto left = std::max<int64_t>(std::chrono::ceil<milliseconds>(until - clock_.now()).count(), 0);
    timespec limit{.tv_sec = left / 1000, .tv_nsec = left % 1000 * 1'000'000};
    int number = ::sigtimedwait(&waited_, nullptr, &limit);
    return number < 0 ? 0 : number;
  }

  void handle(int number) {
    if (number == 0 || number == SIGCHLD) return;
    if (stopping_) {
      kill_at_ = std::min(kill_at_.value_or(clock_.now() + kHurried), clock_.now() + kHurried);
      hurried_ = true;
      return;
    }
    stop(0);
  }

  void stop(int exit_code) {
    if (stopping_) return;
    stopping_ = true;
    exit_code_ = exit_code;
  }

  void reap() {
    int status = 0;
    for (pid_t pid; (pid = ::waitpid(-1, &status, WNOHANG)) > 0;) {
      auto child = std::ranges::find(children_, pid, &Child::pid);
      if (child != children_.end()) died(*child, status);
    }
  }

  void died(Child& child, int status) {
    child.pid = -1;
    bool first = !std::exchange(child.started_before, true);
    if (stopping_) {
      if (stopping_child_ == &child) next_to_stop();
      return;
    }
    int code = WIFEXITED(status) ? WEXITSTATUS(status) : 0;
    if (first && (code == kCannotStart || code == kWrongUsage)) return stop(kCannotStart);
    milliseconds delay = child.backoff.after_death(child.started);
    child.start_at = clock_.now() + delay;
    log::warn(log::Component::app, "process ended, starting it again",
              {{"program", child.spec.name},
               {WIFSIGNALED(status) ? "signal" : "exit",
                WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status)},
               {"after_ms", delay.count()}});
  }

  void next_to_stop() {
    stopping_child_ = nullptr;
    kill_at_.reset();
  }

  // One child at a time: the term signal, then, when its grace is over, the kill.
  void push_stop() {
    if (!stopping_) return;
    if (stopping_child_ == nullptr) {
      auto alive = std::ranges::find_if(children_, [](const Child& child) { return child.pid > 0; });
      if (alive == children_.end()) return;
      stopping_child_ = &*alive;
      ::kill(alive->pid, SIGTERM);
      kill_at_ = clock_.now() + (hurried_ ? std::min<milliseconds>(kHurried, alive->spec.stop_grace)
                                          : alive->spec.stop_grace);
    } else if (kill_at_ && *kill_at_ <= clock_.now()) {
      log::warn(log::Component::app, "process did not stop in time, killing it",
                {{"program", stopping_child_->spec.name}});
      ::kill(stopping_child_->pid, SIGKILL);
      kill_at_.reset();
    }
  }

  const Clock& clock_;
  std::move_only_function<void(const ChildSpec&, pid_t)> started_;
  std::vector<Child> children_;
  sigset_t waited_{}, before_{};
  bool stopping_ = false, hurried_ = false;
  int exit_code_ = 0;
  Child* stopping_child_ = nullptr;
  std::optional<Monotonic::time_point> kill_at_;
};

}  // namespace

milliseconds Backoff::after_death(Monotonic::time_point started) {
  auto now = clock_.now();
  if (now - started >= kLivedLong) step_ = 0;
  deaths_.push_back(now);
  while (now - deaths_.front() >= kWindow) deaths_.pop_front();
  // Once slowed down, deaths no longer fall into one window; the step goes back only after a long life.
  if (deaths_.size() < kDeathsAllowed && step_ == 0) return milliseconds(0);
  milliseconds delay = kSteps[std::min(step_, kSteps.size() - 1)];
  ++step_;
  return delay;
}

int supervise(std::vector<ChildSpec> specs, const Clock& clock,
              std::move_only_function<void(const ChildSpec&, pid_t)> started) {
  Supervision supervision(std::move(specs), clock, std::move(started));
  return supervision.run();
}

int supervise_self(std::string name, int argc, char** argv, ChildSpec spec) {
  spec.name = std::move(name);
  // The link leads to this very file even if its path is not reachable for the user we have become.
  spec.program = "/proc/self/exe";
  spec.argv.assign(argv, argv + argc);
  spec.argv.emplace_back("--no-supervisor");
  Clock clock;
  return supervise({std::move(spec)}, clock);
}

}  // namespace nodemesh::app

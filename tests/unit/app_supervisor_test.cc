#include <doctest/doctest.h>

#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "app/supervisor.h"

using namespace nodemesh;
using namespace nodemesh::app;

namespace {

struct TempDir {
  std::string path;
  TempDir() {
    char name[] = "/tmp/nodemesh-supervisor-XXXXXX";
    path = ::mkdtemp(name);
  }
  ~TempDir() { std::filesystem::remove_all(path); }
};

ChildSpec shell(std::string name, std::string script) {
  return {.name = std::move(name),
          .program = "/bin/sh",
          .argv = {"sh", "-c", std::move(script)},
          .stop_grace = seconds(10)};
}

// A supervisor in a process of its own, since it takes over signals and children.
struct Supervisor {
  pid_t pid;
  explicit Supervisor(std::vector<ChildSpec> specs) {
    pid = ::fork();
    if (pid == 0) {
      Clock clock;
      int null = ::open("/dev/null", O_WRONLY);
      ::dup2(null, 2);
      ::_exit(supervise(std::move(specs), clock));
    }
  }
  ~Supervisor() {
    if (pid > 0) {
      ::kill(pid, SIGKILL);
      ::waitpid(pid, nullptr, 0);
    }
  }
  // Exit code, or -1 after ten seconds.
  int wait() {
    auto deadline = Monotonic::now() + seconds(10);
    int status = 0;
    while (Monotonic::now() < deadline) {
      if (::waitpid(pid, &status, WNOHANG) == pid) {
        pid = -1;
        return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
      }
      ::usleep(2000);
    }
    return -1;
  }
};

template <class Condition>
bool eventually(Condition condition) {
  auto deadline = Monotonic::now() + seconds(10);
  while (!condition() && Monotonic::now() < deadline) ::usleep(2000);
  return condition();
}

std::vector<std::string> lines_of(const std::string& path) {
  std::ifstream file(path);
  std::vector<std::string> out;
  for (std::string line; std::getline(file, line);) out.push_back(line);
  return out;
}

}  // namespace

TEST_CASE("the first four deaths cost no wait, then it is 1, 5 and 30 seconds") {
  ManualClock clock;
  Backoff backoff(clock);
  std::vector<long> waits;
  for (int death = 0; death < 8; ++death) {
    auto started = clock.now();
    clock.advance(milliseconds(100));
    milliseconds wait = backoff.after_death(started);
    clock.advance(wait);
    waits.push_back(wait.count());
  }
  CHECK(waits == std::vector<long>{0, 0, 0, 0, 1000, 5000, 30000, 30000});
}

TEST_CASE("deaths far apart never slow the restart down") {
  ManualClock clock;
  Backoff backoff(clock);
  for (int death = 0; death < 20; ++death) {
    auto started = clock.now();
    clock.advance(seconds(3));
    CHECK(backoff.after_death(started) == milliseconds(0));
  }
}

TEST_CASE("after a life of a minute the next death is restarted at once again") {
  ManualClock clock;
  Backoff backoff(clock);
  for (int death = 0; death < 6; ++death) backoff.after_death(clock.now());
  auto started = clock.now();
  clock.advance(seconds(61));
  CHECK(backoff.after_death(started) == milliseconds(0));
}

TEST_CASE("a child that dies by a signal is started again") {
  TempDir dir;
  std::string log = dir.path + "/log";
  Supervisor supervisor(
      {shell("dies", "echo up >>" + log + "; [ $(wc -l <" + log + ") -ge 3 ] && exec sleep 60; kill -9 $$")});
  REQUIRE(eventually([&] { return lines_of(log).size() == 3; }));
  ::kill(supervisor.pid, SIGTERM);
  CHECK(supervisor.wait() == 0);
}

TEST_CASE("a first start that ends with exit code 1 or 2 ends the supervisor and stops the others") {
  std::string code;
  SUBCASE("it cannot start") {
    code = std::to_string(kCannotStart);
  }
  SUBCASE("its command line is wrong") {
    code = std::to_string(kWrongUsage);
  }
  TempDir dir;
  std::string log = dir.path + "/log";
  Supervisor supervisor({shell("other", "trap 'kill $!; echo stopped >>" + log +
                                            "; exit 0' TERM; echo up >>" + log + "; sleep 60 & wait"),
                         shell("broken", "while [ ! -s " + log + " ]; do sleep 0.01; done; exit " + code)});
  CHECK(supervisor.wait() == kCannotStart);
  CHECK(lines_of(log) == std::vector<std::string>{"up", "stopped"});
}

TEST_CASE("a program that does not exist cannot start") {
  Supervisor supervisor({{.name = "absent", .program = "/nonexistent/program", .argv = {"program"}}});
  CHECK(supervisor.wait() == kCannotStart);
}

TEST_CASE("children are stopped one after the other, in order") {
  TempDir dir;
  std::string log = dir.path + "/log";
  auto script = [&](std::string name) {
    return "trap 'kill $!; echo " + name + " term >>" + log + "; sleep 0.05; echo " + name + " end >>" + log +
           "; exit 0' TERM; echo up >>" + log + "; sleep 60 & wait";
  };
  Supervisor supervisor({shell("one", script("one")), shell("two", script("two"))});
  REQUIRE(eventually([&] { return lines_of(log).size() == 2; }));
  ::kill(supervisor.pid, SIGTERM);
  CHECK(supervisor.wait() == 0);
  auto lines = lines_of(log);
  REQUIRE(lines.size() == 6);
  CHECK(std::vector(lines.begin() + 2, lines.end()) ==
        std::vector<std::string>{"one term", "one end", "two term", "two end"});
}

TEST_CASE("a child that ignores SIGTERM is killed when its grace is over") {
  TempDir dir;
  std::string log = dir.path + "/log";
  auto spec = shell("deaf", "trap '' TERM; echo up >>" + log + "; while :; do sleep 1; done");
  spec.stop_grace = milliseconds(100);
  Supervisor supervisor({spec});
  REQUIRE(eventually([&] { return lines_of(log).size() == 1; }));
  ::kill(supervisor.pid, SIGTERM);
  CHECK(supervisor.wait() == 0);
}

TEST_CASE("a second signal does not wait for the grace") {
  TempDir dir;
  std::string log = dir.path + "/log";
  auto spec = shell(
      "slow", "trap 'echo term >>" + log + "' TERM; echo up >>" + log + "; while :; do sleep 0.05; done");
  spec.stop_grace = seconds(600);
  Supervisor supervisor({spec});
  REQUIRE(eventually([&] { return lines_of(log).size() == 1; }));
  ::kill(supervisor.pid, SIGINT);
  REQUIRE(eventually([&] { return lines_of(log).size() == 2; }));
  ::kill(supervisor.pid, SIGINT);
  CHECK(supervisor.wait() == 0);
}

TEST_CASE("children die with a supervisor that is killed") {
  TempDir dir;
  std::string log = dir.path + "/log";
  Supervisor supervisor({shell("orphan", "echo $$ >>" + log + "; exec sleep 60")});
  REQUIRE(eventually([&] { return lines_of(log).size() == 1; }));
  pid_t child = std::stoi(lines_of(log)[0]);
  ::kill(supervisor.pid, SIGKILL);
  CHECK(supervisor.wait() == 128 + SIGKILL);
  // The child is now init's, which may or may not reap it here: gone or a zombie.
  CHECK(eventually([&] {
    std::ifstream stat("/proc/" + std::to_string(child) + "/stat");
    std::string pid, name, state;
    return !(stat >> pid >> name >> state) || state == "Z";
  }));
}

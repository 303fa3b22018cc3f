#include <doctest/doctest.h>

#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <sstream>
#include <thread>

#include <nlohmann/json.hpp>

#include "admin/server.h"
#include "base/log.h"
#include "ctl/client.h"
#include "ctl/commands.h"
#include "ctl/structured.h"
#include "ctl/table.h"
#include "ctl/views.h"

using namespace nodemesh;
using namespace nodemesh::ctl;

namespace {

struct Ran {
  int exit;
  std::string out, err;
};

Ran run_as(const char* program, const std::vector<std::string>& args, bool colour = false) {
  std::vector<const char*> argv{program};
  for (const auto& arg : args) argv.push_back(arg.c_str());
  std::ostringstream out, err;
  int exit = run(static_cast<int>(argv.size()), argv.data(), out, err, colour);
  return {exit, out.str(), err.str()};
}

Ran meshctl(const std::vector<std::string>& args, bool colour = false) {
  return run_as("meshctl", args, colour);
}

bool has(const std::string& text, std::string_view part) {
  return text.find(part) != text.npos;
}

struct RunDir {
  std::string path;
  RunDir() {
    char name[] = "/tmp/nodemesh-ctl-XXXXXX";
    path = ::mkdtemp(name);
  }
  ~RunDir() { std::filesystem::remove_all(path); }
};

// An agent's admin server on a thread of its own, at <run-dir>/<node>/admin.sock.
class Agent {
 public:
  Agent(const RunDir& dir, std::string node, nlohmann::json status = {{"ready", true}, {"generation", 7}}) {
    std::filesystem::create_directories(dir.path + "/" + node);
    std::atomic<bool> listening{false};
    thread_ = std::thread(
        [this, address = "unix:" + dir.path + "/" + node + "/admin.sock", node, status, &listening] {
          io::Reactor reactor;
          admin::Sources sources;
          sources.node = node;
          sources.version = node == "old" ? "0.0.1" : NODEMESH_VERSION;
          sources.status = [status](admin::Reply reply) { reply(nlohmann::json(status)); };
          sources.workloads = [](admin::Reply reply) {
            reply({{{"name", "web"},
                    {"namespace", "shop"},
                    {"addresses", {"10.0.0.1", "fd00::1"}},
                    {"protocol", "HBONE"},
                    {"enrolled", true},
                    {"status", "ok"}},
                   {{"name", "evil\033[2J\n"}, {"namespace", 5}, {"addresses", nullptr}}});
          };
          sources.certs = [](admin::Reply reply) { reply(nlohmann::json::array()); };
          sources.connections = [](admin::Reply reply) {
            reply({{{"source", {{"identity", "spiffe://t/ns/a/sa/b"}}},
                    {"destination", {{"workload", "db"}, {"namespace", "shop"}, {"port", 5432}}},
                    {"tls", nullptr},
                    {"path", "same-node"},
                    {"bytes_sent", 1536},
                    {"bytes_received", 5},
                    {"age_ms", 93'784'000}}});
          };
          admin::Server server(reactor, std::move(sources));
          failed_ = !server.listen(admin::Surface::admin, address).has_value();
          listening = true;
          while (!stop_) reactor.run_once(milliseconds(5));
        });
    while (!listening) std::this_thread::yield();
    REQUIRE_FALSE(failed_);
  }
  ~Agent() {
    stop_ = true;
    thread_.join();
  }

 private:
  std::atomic<bool> stop_{false}, failed_{false};
  std::thread thread_;
};

// A health port.
class HealthPort {
 public:
  explicit HealthPort(bool ready) {
    std::atomic<bool> listening{false};
    thread_ = std::thread([this, ready, &listening] {
      io::Reactor reactor;
      admin::Sources sources;
      sources.not_ready = [ready] {
        return ready ? std::vector<std::string>() : std::vector<std::string>{"the certificate is missing"};
      };
      admin::Server server(reactor, std::move(sources));
      if (server.listen(admin::Surface::health, "[::]:0")) port_ = server.last_address().port;
      listening = true;
      while (!stop_) reactor.run_once(milliseconds(5));
    });
    while (!listening) std::this_thread::yield();
    REQUIRE(port_ != 0);
  }
  ~HealthPort() {
    stop_ = true;
    thread_.join();
  }
  std::string url() const { return "http://localhost:" + std::to_string(port_) + "/healthz/ready"; }

 private:
  std::atomic<bool> stop_{false};
  uint16_t port_ = 0;
  std::thread thread_;
};

}  // namespace

TEST_CASE("a table aligns its columns, fills what is missing and lets nothing raw through") {
  Table table({"NAME", "STATE"});
  table.add({{"a"}, {"ok", Style::good}});
  table.add({{"longer\t\xff"}});
  CHECK(table.render(false) == "NAME            STATE\na               ok\nlonger\\x09\\xff  -\n");
  CHECK(table.render(true) ==
        "NAME            STATE\na               \033[32mok\033[0m\nlonger\\x09\\xff  -\n");
}

TEST_CASE("bytes and times are written for people") {
  CHECK(human_bytes(0) == "0B");
  CHECK(human_bytes(1023) == "1023B");
  CHECK(human_bytes(1536) == "1.5KiB");
  CHECK(human_bytes((1 << 20) - 1) == "1.0MiB");
  CHECK(human_bytes(UINT64_MAX) == "16.0EiB");
  CHECK(human_seconds(59) == "59s");
  CHECK(human_seconds(3599) == "59m59s");
  CHECK(human_seconds(93784) == "1d2h");
  CHECK(human_seconds(-5) == "-5s");
}

TEST_CASE("YAML quotes whatever a reader could take for another type") {
  nlohmann::json value = {{"a", "text"},
                          {"b", "yes"},
                          {"c", "1"},
                          {"d", {1, {{"x", nullptr}, {"y", "a: b"}}}},
                          {"e", nlohmann::json::array()},
                          {"f", {{"g", true}}}};
  CHECK(to_yaml_text(value) ==
        "a: text\nb: \"yes\"\nc: \"1\"\nd:\n- 1\n- x: null\n  \"y\": \"a: b\"\ne: []\nf:\n  g: true\n");
}

TEST_CASE("an answer is taken only when it is HTTP and whole") {
  CHECK(parse_response("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi", true)->body == "hi");
  CHECK(parse_response("HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n", true)->status == 503);
  CHECK(parse_response("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nhi", false)->status == 0);
  CHECK_FALSE(parse_response("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nhi", true));
  CHECK_FALSE(parse_response("HTTP/1.1 200 OK\r\n\r\nhi", true));
  CHECK_FALSE(parse_response("", true));
  CHECK_FALSE(parse_response("SSH-2.0-x\r\n\r\n", false));
  CHECK_FALSE(parse_response("HTTP/1.1 ab\r\ncontent-length: 0\r\n\r\n", true));
}

TEST_CASE("wrong usage exits with 2 and says what would be right") {
  for (auto args : std::vector<std::vector<std::string>>{{},
                                                         {"nonsense"},
                                                         {"get"},
                                                         {"get", "pods"},
                                                         {"get", "certs", "-o", "xml"},
                                                         {"log", "set", "tls"},
                                                         {"log", "set", "tls", "loud"},
                                                         {"completion", "tcsh"},
                                                         {"status", "--bogus"}}) {
    auto ran = meshctl(args);
    CHECK(ran.exit == kUsage);
    CHECK(has(ran.err, "error: "));
    CHECK(has(ran.err, "next: "));
    CHECK(ran.out.empty());
  }
  CHECK(has(meshctl({"get", "pods"}).err, "use workloads, services, policies"));
  CHECK(meshctl({"statu"}).err == "error: `meshctl` has no command statu\n  next: see `meshctl --help`\n");
  CHECK(has(meshctl({"log", "sett"}).err,
            "`meshctl log` has no command sett\n  next: see `meshctl log --help`"));
  CHECK(has(meshctl({"enroll", "shop", "--kubeconfig", "/none"}).err,
            "must be `namespace NAME`, or a workload"));
}

TEST_CASE("as kubectl's plugin it calls itself what the user types") {
  CHECK(has(run_as("/usr/local/bin/kubectl-mesh", {"statu"}).err, "next: see `kubectl mesh --help`\n"));
  CHECK(has(run_as("/usr/local/bin/kubectl-mesh", {"--help"}).out, "Usage: kubectl mesh "));
}

TEST_CASE("help and version exit with 0") {
  CHECK(meshctl({"--help"}).exit == kOk);
  CHECK(has(meshctl({"--help"}).out, "Exit codes: 0 ok, 1 failure, 2 wrong usage, 3 warnings"));
  CHECK(has(meshctl({"--version"}).out, NODEMESH_VERSION));
  RunDir dir;
  CHECK(meshctl({"version", "--run-dir", dir.path}).out == "meshctl " NODEMESH_VERSION "\n");
}

TEST_CASE("no node, a dead node and a node that is not there exit with 4 and name the way on") {
  RunDir dir;
  auto none = meshctl({"status", "--run-dir", dir.path});
  CHECK(none.exit == kUnreachable);
  CHECK(has(none.err, "meshctl node run"));
  CHECK(meshctl({"status", "--run-dir", dir.path + "/missing"}).exit == kUnreachable);
  CHECK(meshctl({"status", "--run-dir", dir.path, "--node", "n1"}).exit == kUnreachable);
  CHECK(meshctl({"status", "--admin", "127.0.0.1:1"}).exit == kUnreachable);
  CHECK(meshctl({"status", "--admin", "nonsense"}).exit == kUnreachable);
}

TEST_CASE("rows of several nodes are shown together, and one dead node is a warning") {
  RunDir dir;
  Agent a(dir, "alpha"), b(dir, "beta");
  std::filesystem::create_directories(dir.path + "/dead");
  Fd dead(::socket(AF_UNIX, SOCK_STREAM, 0));
  sockaddr_un native{.sun_family = AF_UNIX, .sun_path = {}};
  std::snprintf(native.sun_path, sizeof native.sun_path, "%s/dead/admin.sock", dir.path.c_str());
  REQUIRE(::bind(dead.get(), reinterpret_cast<sockaddr*>(&native), sizeof native) == 0);
  auto ran = meshctl({"get", "workloads", "--run-dir", dir.path});
  CHECK(ran.exit == kOk);
  CHECK(has(ran.err, "warning: cannot reach the agent at unix:" + dir.path + "/dead/admin.sock"));
  CHECK(has(ran.out, "NODE   NAMESPACE  NAME             ADDRESSES         PROTOCOL  ENROLLED  STATUS\n"));
  CHECK(has(ran.out, "alpha  shop       web              10.0.0.1,fd00::1  HBONE     yes       ok\n"));
  CHECK(has(ran.out, "beta   5          evil\\x1b[2J\\x0a  -                 -         -         -\n"));
  CHECK(meshctl({"get", "workloads", "--run-dir", dir.path, "--strict"}).exit == kWarnings);
  CHECK(meshctl({"--node", "alpha", "get", "workloads", "--run-dir", dir.path}).exit == kOk);
  CHECK(meshctl({"--node", "dead", "--node", "alpha", "get", "workloads", "--run-dir", dir.path}).exit ==
        kUnreachable);
}

TEST_CASE("JSON and YAML outputs carry every row with the node that reported it") {
  RunDir dir;
  Agent a(dir, "alpha");
  auto json = nlohmann::json::parse(meshctl({"get", "workload", "-o", "json", "--run-dir", dir.path}).out);
  CHECK(json["schema"] == 1);
  CHECK(json["kind"] == "workloads");
  CHECK(json["items"][0]["reported_by"] == "alpha");
  CHECK(
      has(meshctl({"get", "workloads", "-o", "yaml", "--run-dir", dir.path}).out, "  reported_by: alpha\n"));
  auto empty = meshctl({"get", "certs", "--run-dir", dir.path});
  CHECK(empty.exit == kOk);
  CHECK(empty.out.empty());
  CHECK(empty.err == "no certs\n");
}

TEST_CASE("connections show who talks to whom and whether it is encrypted") {
  RunDir dir;
  Agent a(dir, "alpha");
  auto out = meshctl({"get", "connections", "--run-dir", dir.path}).out;
  CHECK(has(
      out, "spiffe://t/ns/a/sa/b  shop/db (unproven)  5432  plaintext  same-node  5B        1.5KiB  1d2h\n"));
}

TEST_CASE("what an agent does not serve is a failure, not unreachable") {
  RunDir dir;
  Agent a(dir, "alpha");
  auto ran = meshctl({"get", "policies", "--run-dir", dir.path});
  CHECK(ran.exit == kFailure);
  CHECK(has(ran.err, "node alpha does not serve /policies"));
}

TEST_CASE("status tells what is wrong and exits with it") {
  RunDir dir;
  {
    Agent good(dir, "alpha");
    auto ran = meshctl({"status", "--run-dir", dir.path});
    CHECK(ran.exit == kOk);
    CHECK(has(ran.out, "alpha  yes    " NODEMESH_VERSION));
  }
  {
    Agent unready(dir, "alpha", {{"ready", false}, {"reasons", {"no certificate"}}});
    auto ran = meshctl({"status", "--run-dir", dir.path});
    CHECK(ran.exit == kFailure);
    CHECK(has(ran.err, "node alpha is not ready: no certificate"));
  }
  Agent rejected(dir, "alpha",
                 {{"ready", true},
                  {"rejected",
                   {{{"kind", "Pod"},
                     {"namespace", "shop"},
                     {"name", "web"},
                     {"origin", "pods.yaml:3"},
                     {"field", "status.podIP"},
                     {"message", "not an address"},
                     {"fix", "write one"}}}}});
  auto ran = meshctl({"status", "--run-dir", dir.path});
  CHECK(ran.exit == kOk);
  CHECK(has(ran.err, "alpha: Pod shop/web (pods.yaml:3), status.podIP: not an address; write one"));
  CHECK(meshctl({"status", "--strict", "--run-dir", dir.path}).exit == kWarnings);
}

TEST_CASE("log set changes the level at the agent, and its refusal is passed on") {
  RunDir dir;
  Agent a(dir, "alpha");
  auto before = log::level(log::Component::tls);
  auto ran = meshctl({"log", "set", "tls", "debug", "--run-dir", dir.path});
  CHECK(ran.exit == kOk);
  CHECK(ran.out == "alpha: tls logs at debug\n");
  CHECK(log::level(log::Component::tls) == log::Level::debug);
  log::set_level(log::Component::tls, before);
  auto wrong = meshctl({"log", "set", "no such&component=tls", "debug", "--run-dir", dir.path});
  CHECK(wrong.exit == kFailure);
  CHECK(has(wrong.err, "component: unknown"));
  CHECK(meshctl({"log", "set", "tls", "debug", "--for", "soon", "--run-dir", dir.path}).exit == kFailure);
  CHECK(has(meshctl({"log", "get", "--run-dir", dir.path}).out, "alpha  tls"));
}

TEST_CASE("version compares itself with the agents") {
  RunDir dir;
  Agent a(dir, "old");
  auto ran = meshctl({"version", "--run-dir", dir.path});
  CHECK(ran.exit == kOk);
  CHECK(has(ran.out, "agent   0.0.1 on old\n"));
  CHECK(has(ran.err, "node old runs 0.0.1"));
  CHECK(meshctl({"version", "--strict", "--run-dir", dir.path}).exit == kWarnings);
}

TEST_CASE("ready asks every address of a name, and says what is not ready") {
  HealthPort good(true), bad(false);
  auto ok = meshctl({"ready", good.url()});
  CHECK(ok.exit == 0);
  CHECK(has(ok.out, "ready, addresses: "));
  auto not_ready = meshctl({"ready", good.url(), bad.url()});
  CHECK(not_ready.exit == 1);
  CHECK(has(not_ready.err, "the certificate is missing"));
  auto dead = meshctl({"ready", "http://127.0.0.1:1/healthz/ready"});
  CHECK(dead.exit == 4);
  CHECK(meshctl({"ready", "127.0.0.1:1"}).exit == 2);
  CHECK(meshctl({"ready", "http://no-such-name.invalid:1/"}).exit == 4);
}

TEST_CASE("the run directory can come from the environment") {
  RunDir dir;
  Agent a(dir, "alpha");
  ::setenv("NODEMESH_RUN_DIR", dir.path.c_str(), 1);
  CHECK(meshctl({"status"}).exit == kOk);
  ::unsetenv("NODEMESH_RUN_DIR");
}

TEST_CASE("completion offers commands, kinds, levels, flags and nodes") {
  RunDir dir;
  Agent a(dir, "alpha");
  auto complete = [&](std::vector<std::string> words) {
    words.insert(words.begin(), {"--run-dir", dir.path, "__complete", "--"});
    return meshctl(words).out;
  };
  CHECK(has(complete({"st"}), "status\n"));
  CHECK_FALSE(has(complete({""}), "__complete"));
  CHECK(complete({"get", "w"}) == "workloads\n");
  CHECK(complete({"log", ""}) == "get\nset\n");
  CHECK(complete({"log", "set", "pr"}) == "proxy\n");
  CHECK(complete({"log", "set", "proxy", "d"}) == "debug\n");
  CHECK(has(complete({"get", "--no"}), "--node\n"));
  CHECK(complete({"get", "-o", "y"}) == "yaml\n");
  CHECK(complete({"get", "--node", "a"}) == "alpha\n");
  CHECK(complete({"install", "--profile", "s"}) == "strict\n");
  CHECK(complete({"check", "--explain", "NM100"}).starts_with("NM1001\nNM1002\n"));
  for (auto shell : {"bash", "zsh", "fish"})
    CHECK(has(meshctl({"completion", shell}).out, "meshctl __complete --"));
}

#include <doctest/doctest.h>

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <thread>

#include <nlohmann/json.hpp>

#include "admin/rows.h"
#include "admin/server.h"
#include "base/log.h"
#include "telemetry/denials.h"
#include "telemetry/recorder.h"
#include "telemetry/registry.h"

using namespace nodemesh;
using namespace nodemesh::admin;

namespace {

bool has(const std::string& text, std::string_view part) {
  return text.find(part) != text.npos;
}

struct TempDir {
  std::string path;
  TempDir() {
    char name[] = "/tmp/nodemesh-admin-XXXXXX";
    path = ::mkdtemp(name);
  }
  ~TempDir() { std::filesystem::remove_all(path); }
};

// A server on this thread's reactor and a client socket driven in turns with it.
struct Fixture {
  io::Reactor reactor;
  telemetry::Denials denials;
  std::vector<std::string> not_ready;
  std::string metrics = "up 1\n";
  int scrapes = 0;
  std::vector<Reply> held;
  std::unique_ptr<Server> server;

  explicit Fixture(ServerLimits limits = {}) {
    Sources sources;
    sources.node = "n1";
    sources.version = "1.2.3";
    sources.denials = &denials;
    sources.metrics = [this] { return ++scrapes, metrics; };
    sources.not_ready = [this] { return not_ready; };
    sources.workloads = [](Reply reply) { reply(nlohmann::json::array({{{"name", "web"}}})); };
    sources.connections = [](Reply reply) { reply(nlohmann::json::array()); };
    sources.status = [](Reply reply) { reply({{"ready", true}}); };
    sources.services = [this](Reply reply) { held.push_back(std::move(reply)); };
    server = std::make_unique<Server>(reactor, std::move(sources), limits);
  }

  SockAddr listen(Surface surface) {
    auto ok = server->listen(surface, "127.0.0.1:0");
    REQUIRE(ok.has_value());
    return server->last_address();
  }

  Fd connect(const SockAddr& address) {
    Fd fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_storage native;
    auto length = address.to_native(native, AF_INET);
    REQUIRE(::connect(fd.get(), reinterpret_cast<sockaddr*>(&native), length) == 0);
    return fd;
  }

  void turn_until(const std::function<bool()>& done) {
    auto until = Monotonic::now() + seconds(10);
    while (!done() && Monotonic::now() < until) reactor.run_once(milliseconds(5));
    REQUIRE(done());
  }

  // Sends, then reads until `done` says the answer is whole, or the peer closed.
  std::string exchange(int fd, std::string_view bytes,
                       const std::function<bool(const std::string&)>& done = {}) {
    REQUIRE(::send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(bytes.size()));
    std::string got;
    bool closed = false;
    turn_until([&] {
      char part[65536];
      ssize_t n = ::recv(fd, part, sizeof part, MSG_DONTWAIT);
      if (n > 0) got.append(part, static_cast<size_t>(n));
      closed = n == 0 || (n < 0 && errno == ECONNRESET);
      return closed || (done && done(got));
    });
    return got;
  }

  std::string get(Surface surface, std::string_view path, std::string_view method = "GET",
                  std::string_view extra = "") {
    auto fd = connect(listen(surface));
    std::string request = std::string(method) + " " + std::string(path) + " HTTP/1.1\r\nHost: localhost\r\n" +
                          std::string(extra) + "Connection: close\r\n\r\n";
    return exchange(fd.get(), request);
  }
};

std::string body_of(const std::string& answer) {
  return answer.substr(answer.find("\r\n\r\n") + 4);
}

}  // namespace

TEST_CASE("metrics are served on their port under both paths, and nothing else is") {
  Fixture f;
  auto answer = f.get(Surface::metrics, "/metrics");
  CHECK(answer.starts_with("HTTP/1.1 200 OK\r\n"));
  CHECK(has(answer, "content-type: text/plain; version=0.0.4; charset=utf-8\r\n"));
  CHECK(body_of(answer) == "up 1\n");
  CHECK(body_of(f.get(Surface::metrics, "/stats/prometheus")) == "up 1\n");
  for (auto path : {"/", "/workloads", "/config_dump", "/logging", "/healthz/ready"}) {
    CHECK(f.get(Surface::metrics, path).starts_with("HTTP/1.1 404"));
  }
  CHECK(f.get(Surface::metrics, "/logging?component=app&level=off", "POST").starts_with("HTTP/1.1 405"));
}

TEST_CASE("readiness is 200, or 503 with the reasons") {
  Fixture f;
  CHECK(f.get(Surface::health, "/healthz/ready").starts_with("HTTP/1.1 200 "));
  f.not_ready = {"no configuration yet", "no certificate for ns/shop/sa/web"};
  auto answer = f.get(Surface::health, "/healthz/ready");
  CHECK(answer.starts_with("HTTP/1.1 503 "));
  CHECK(body_of(answer) == "not ready:\n- no configuration yet\n- no certificate for ns/shop/sa/web\n");
  CHECK(f.get(Surface::health, "/metrics").starts_with("HTTP/1.1 404"));
}

TEST_CASE("rows come wrapped with the node and the kind, and denials beside the connections") {
  Fixture f;
  f.denials.add({.source = "a", .destination = "b:80", .reason = Reason::STRICT_PLAINTEXT});
  auto workloads = nlohmann::json::parse(body_of(f.get(Surface::admin, "/workloads")));
  CHECK(workloads ==
        nlohmann::json::parse(
            R"({"schema":1,"node":"n1","version":"1.2.3","kind":"workloads","items":[{"name":"web"}]})"));
  auto connections = nlohmann::json::parse(body_of(f.get(Surface::admin, "/connections")));
  CHECK(connections["denials"][0]["reason"] == "STRICT_PLAINTEXT");
  CHECK(connections["denials"][0]["policy"].is_null());
  auto status = nlohmann::json::parse(body_of(f.get(Surface::admin, "/status")));
  CHECK(status["status"]["ready"] == true);
  CHECK(f.get(Surface::admin, "/policies").starts_with("HTTP/1.1 404"));
}

TEST_CASE("an answer may come later and from another thread while other clients are served") {
  Fixture f;
  auto address = f.listen(Surface::admin);
  auto slow = f.connect(address);
  REQUIRE(::send(slow.get(), "GET /services HTTP/1.1\r\nHost: localhost\r\n\r\n", 44, 0) == 44);
  f.turn_until([&] { return f.held.size() == 1; });
  auto quick = f.connect(address);
  CHECK(has(f.exchange(quick.get(), "GET /version HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"),
            "1.2.3"));
  std::thread other([reply = std::move(f.held[0])]() mutable { reply(nlohmann::json::array({1})); });
  auto answer = f.exchange(slow.get(), "", [](const std::string& got) { return has(got, "\"items\":[1]"); });
  other.join();
  CHECK(has(answer, "connection: keep-alive"));
}

TEST_CASE("a source that does not answer in time gives 504, and its late answer harms nobody") {
  Fixture f({.answer = milliseconds(50)});
  auto fd = f.connect(f.listen(Surface::admin));
  CHECK(
      f.exchange(fd.get(), "GET /services HTTP/1.1\r\nHost: localhost\r\n\r\n").starts_with("HTTP/1.1 504"));
  f.turn_until([&] { return f.server->connections() == 0; });
  f.held[0](nlohmann::json::array());
  f.reactor.run_once(milliseconds(5));
}

TEST_CASE("pipelined requests are answered in order") {
  Fixture f;
  auto fd = f.connect(f.listen(Surface::admin));
  auto answer = f.exchange(
      fd.get(),
      "GET /version HTTP/1.1\r\nHost: localhost\r\n\r\nHEAD /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"
      "GET /healthz/ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
  auto version = answer.find("\"version\""), head = answer.find("content-length: 5\r\n"),
       ready = answer.find("ready\n");
  CHECK(version < head);
  CHECK(head < ready);
  CHECK(ready != answer.npos);
  CHECK_FALSE(has(answer, "up 1"));
}

TEST_CASE("a malformed request is answered with its fault and the connection closes") {
  Fixture f;
  auto fd = f.connect(f.listen(Surface::metrics));
  auto answer = f.exchange(fd.get(), "GET /metrics HTTP/1.1\r\nbroken\r\n\r\n");
  CHECK(answer.starts_with("HTTP/1.1 400 Bad Request\r\n"));
  CHECK(body_of(answer) == "a header field is malformed\n");
}

TEST_CASE("a client that drips its request is cut off, one that is idle is closed in silence") {
  Fixture f({.head = milliseconds(60), .idle = milliseconds(60)});
  auto address = f.listen(Surface::metrics);
  auto drip = f.connect(address), idle = f.connect(address);
  CHECK(f.exchange(drip.get(), "GET /met").starts_with("HTTP/1.1 408"));
  CHECK(f.exchange(idle.get(), "").empty());
}

TEST_CASE("a reader that stalls is closed and others are served meanwhile") {
  Fixture f({.progress = milliseconds(100)});
  f.metrics = std::string(32 << 20, 'x');
  auto address = f.listen(Surface::metrics);
  auto stalled = f.connect(address);
  std::string_view request = "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n";
  REQUIRE(::send(stalled.get(), request.data(), request.size(), 0) > 0);
  f.turn_until([&] { return f.scrapes == 1; });
  f.metrics = "up 1\n";
  auto other = f.connect(address);
  CHECK(has(f.exchange(other.get(), "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),
            "200 OK"));
  f.turn_until([&] { return f.server->connections() == 0; });
}

TEST_CASE("at the limit of connections the oldest idle one gives way, per port") {
  Fixture f({.connections_per_surface = 3});
  auto metrics = f.listen(Surface::metrics), health = f.listen(Surface::health);
  std::vector<Fd> hogs;
  for (int i = 0; i < 10; ++i) hogs.push_back(f.connect(metrics));
  f.turn_until([&] { return f.server->connections() == 3; });
  auto probe = f.connect(health);
  CHECK(has(f.exchange(probe.get(), "GET /healthz/ready HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),
            "200 OK"));
  auto scrape = f.connect(metrics);
  CHECK(has(f.exchange(scrape.get(), "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"),
            "200 OK"));
}

TEST_CASE("the admin port answers no web page") {
  Fixture f;
  auto fd = f.connect(f.listen(Surface::admin));
  CHECK(
      f.exchange(fd.get(), "GET /workloads HTTP/1.1\r\nHost: evil.example:15000\r\nConnection: close\r\n\r\n")
          .starts_with("HTTP/1.1 403"));
  CHECK(f.get(Surface::admin, "/logging?component=app&level=off", "POST", "Origin: http://evil.example\r\n")
            .starts_with("HTTP/1.1 403"));
  CHECK(log::level(log::Component::app) != log::Level::off);
}

TEST_CASE("a log level is set for a while and then returns to what it was") {
  Fixture f;
  log::set_level(log::Component::tls, log::Level::info);
  CHECK(has(f.get(Surface::admin, "/logging?component=tls&level=warn&for=1h", "POST"), "\"tls\":\"warn\""));
  CHECK(
      has(f.get(Surface::admin, "/logging?component=tls&level=error&for=50ms", "POST"), "\"tls\":\"error\""));
  CHECK(has(f.get(Surface::admin, "/logging"), "\"tls\":\"error\""));
  f.turn_until([] { return log::level(log::Component::tls) == log::Level::info; });
}

TEST_CASE("a wrong log request names the parameter") {
  Fixture f;
  auto post = [&](std::string query) { return body_of(f.get(Surface::admin, "/logging?" + query, "POST")); };
  CHECK(post("level=info") == "component: unknown; use all, or one that GET /logging lists\n");
  CHECK(post("component=tls&level=loud") == "level: unknown; use debug, info, warn, error or off\n");
  for (auto bad : {"5", "m", "-5m", "0s", "25h", "99999999999999999999h", "5%20m", ""}) {
    CHECK(post("component=tls&level=info&for=" + std::string(bad)).starts_with("for: "));
  }
}

TEST_CASE("a port in use is told in one sentence") {
  Fixture f;
  auto address = f.listen(Surface::metrics);
  auto again = f.server->listen(Surface::metrics, address.to_string());
  REQUIRE_FALSE(again.has_value());
  CHECK(again.error().message ==
        "cannot listen on " + address.to_string() +
            ": another process holds it; stop that process or choose another address");
  CHECK_FALSE(f.server->listen(Surface::admin, "nonsense").has_value());
}

TEST_CASE("a Unix socket is private, replaces a dead one and leaves a live one alone") {
  Fixture f;
  TempDir dir;
  auto address = "unix:" + dir.path + "/admin.sock";
  {
    Fd dead(::socket(AF_UNIX, SOCK_STREAM, 0));
    sockaddr_un native{.sun_family = AF_UNIX, .sun_path = {}};
    std::snprintf(native.sun_path, sizeof native.sun_path, "%s/admin.sock", dir.path.c_str());
    REQUIRE(::bind(dead.get(), reinterpret_cast<sockaddr*>(&native), sizeof native) == 0);
  }
  REQUIRE(f.server->listen(Surface::admin, address).has_value());
  struct stat status{};
  REQUIRE(::stat((dir.path + "/admin.sock").c_str(), &status) == 0);
  CHECK((status.st_mode & 0777) == 0600);
  auto second = f.server->listen(Surface::admin, address);
  REQUIRE_FALSE(second.has_value());
  CHECK(has(second.error().message, "another process holds it"));
  std::ofstream(dir.path + "/file") << "precious";
  CHECK_FALSE(f.server->listen(Surface::admin, "unix:" + dir.path + "/file").has_value());
  CHECK(std::filesystem::file_size(dir.path + "/file") == 8);
  CHECK_FALSE(f.server->listen(Surface::admin, "unix:/" + std::string(200, 'a')).has_value());
}

TEST_CASE("a connection's row says who, how and how much") {
  ManualClock clock;
  io::Reactor reactor;
  telemetry::Metrics metrics({}, clock);
  telemetry::AccessLog access_log(reactor);
  telemetry::Denials denials;
  telemetry::Recorder recorder(0, clock, metrics.shard(0), access_log, denials, reactor);
  telemetry::Record record(recorder, telemetry::Direction::outbound);
  record.src = *SockAddr::parse("10.0.0.1:4000");
  record.dst = *SockAddr::parse("10.1.0.9:5432");
  record.source_identity = std::make_shared<const std::string>("spiffe://cluster.local/ns/a/sa/b\xff");
  record.tls_version = "TLSv1.3";
  record.tls_cipher = "TLS_AES_128_GCM_SHA256";
  record.path = telemetry::Path::hbone;
  record.established();
  record.add_from_server(239);
  clock.advance(seconds(2));
  auto row = connection_row(record, clock.now());
  CHECK(row["tls"]["version"] == "TLSv1.3");
  CHECK(row["destination"]["port"] == 5432);
  CHECK(row["bytes_sent"] == 239);
  CHECK(row["age_ms"] == 2000);
  CHECK(row["path"] == "hbone");
  CHECK(row["opened_at"] == "2023-11-14T22:13:20Z");
  record.complete();
}

#include <doctest/doctest.h>

#include <nlohmann/json.hpp>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <sstream>

#include "base/log.h"
#include "io/reactor.h"
#include "telemetry/access_log.h"
#include "telemetry/recorder.h"
#include "telemetry/registry.h"

using namespace nodemesh;
using namespace nodemesh::telemetry;

namespace {

bool has(const std::string& text, std::string_view part) {
  return text.find(part) != text.npos;
}

struct Worker {
  ManualClock clock;
  io::Reactor reactor;
  Metrics metrics{{}, clock};
  AccessLog log{reactor};
  Denials denials;
  Recorder recorder{3, clock, metrics.shard(0), log, denials, reactor};

  void turn_until(const std::function<bool()>& done) {
    auto until = Monotonic::now() + seconds(10);
    while (!done() && Monotonic::now() < until) reactor.run_once(milliseconds(20));
    REQUIRE(done());
  }
};

void fill(Record& record) {
  WorkloadLabels client;
  client.workload = "curl";
  client.ns = "shop";
  record.source = share(client);
  client.workload = "db";
  record.destination = share(client);
  record.service = share(ServiceLabels{"db.shop.svc.cluster.local", "db", "shop"});
  record.src = *SockAddr::parse("10.0.0.1:40000");
  record.dst = *SockAddr::parse("10.1.0.9:5432");
  record.hbone = *SockAddr::parse("10.0.1.2:15008");
  record.source_identity = std::make_shared<const std::string>("spiffe://cluster.local/ns/shop/sa/curl");
  record.destination_identity = std::make_shared<const std::string>("spiffe://cluster.local/ns/shop/sa/db");
  record.tls_version = "TLSv1.3";
  record.tls_cipher = "TLS_AES_128_GCM_SHA256";
  record.path = Path::hbone;
}

// A log line, taken from a pipe in place of stderr.
struct CapturedLog {
  int ends[2];
  CapturedLog() {
    REQUIRE(::pipe2(ends, O_NONBLOCK | O_CLOEXEC) == 0);
    log::set_fd(ends[1]);
  }
  ~CapturedLog() {
    log::set_fd(2);
    ::close(ends[0]);
    ::close(ends[1]);
  }
  std::string text() {
    char bytes[60000];
    ssize_t got = ::read(ends[0], bytes, sizeof bytes);
    return {bytes, got > 0 ? static_cast<size_t>(got) : 0};
  }
};

}  // namespace

TEST_CASE("a record counts its connection as open, its bytes while it lives, and its end once") {
  Worker w;
  {
    Record record(w.recorder, Direction::outbound);
    fill(record);
    record.established();
    record.add_from_client(84);
    record.add_from_server(239);
    auto text = w.metrics.render();
    CHECK(has(text, "nodemesh_connections_open{direction=\"outbound\",path=\"hbone\"} 1\n"));
    CHECK(has(text, "connection_security_policy=\"mutual_tls\"} 239\n"));
    record.complete();
    record.complete();
    record.add_from_server(1);
  }
  auto text = w.metrics.render();
  CHECK(has(text, "nodemesh_connections_open{direction=\"outbound\",path=\"hbone\"} 0\n"));
  CHECK(has(text, "nodemesh_connections_total{direction=\"outbound\",path=\"hbone\",reason=\"NONE\"} 1\n"));
  CHECK(has(text, "istio_tcp_connections_closed_total{reporter=\"source\""));
  CHECK(has(text, "istio_tcp_sockets_open{reporter=\"source\"} 0\n"));
}

TEST_CASE(
    "a record that is dropped without being completed completes itself as an internal error and says so") {
  Worker w;
  CapturedLog log;
  {
    Record record(w.recorder, Direction::inbound);
    fill(record);
    record.established();
  }
  CHECK(has(w.metrics.render(), "reason=\"INTERNAL\"} 1\n"));
  CHECK(has(log.text(), "without completing its record"));
}

TEST_CASE("a same-node connection is counted by both reporters and as not encrypted") {
  Worker w;
  Record record(w.recorder, Direction::outbound);
  fill(record);
  record.path = Path::same_node;
  record.tls_version = nullptr;
  record.established();
  record.add_from_client(5);
  record.complete();
  auto text = w.metrics.render();
  CHECK(has(text, "istio_tcp_connections_opened_total{reporter=\"source\""));
  CHECK(has(text, "istio_tcp_received_bytes_total{reporter=\"destination\""));
  CHECK(has(text, "connection_security_policy=\"none\"} 5\n"));
}

TEST_CASE("a denied connection counts as failed, is kept as a denial and is logged, but never as opened") {
  Worker w;
  CapturedLog log;
  Record record(w.recorder, Direction::inbound);
  fill(record);
  record.fail(Reason::POLICY_DENY);
  record.fail(Reason::PEER_RESET);
  record.decided_by("shop/deny-curl");
  record.complete();
  auto text = w.metrics.render();
  CHECK(has(text, "istio_tcp_connections_failed_total{reporter=\"destination\""));
  CHECK(has(text, "response_flags=\"DENY\""));
  CHECK_FALSE(has(text, "istio_tcp_connections_opened_total{"));
  REQUIRE(w.denials.recent().size() == 1);
  auto denial = w.denials.recent()[0];
  CHECK(denial.source == "spiffe://cluster.local/ns/shop/sa/curl");
  CHECK(denial.destination == "spiffe://cluster.local/ns/shop/sa/db:5432");
  CHECK(denial.reason == Reason::POLICY_DENY);
  CHECK(denial.policy == "shop/deny-curl");
  CHECK(has(log.text(), "reason=POLICY_DENY policy=shop/deny-curl"));
}

TEST_CASE("a flood of denials is logged in samples and counted in full") {
  Worker w;
  CapturedLog log;
  auto deny = [&] {
    Record record(w.recorder, Direction::inbound);
    record.fail(Reason::STRICT_PLAINTEXT);
    record.complete();
  };
  for (int i = 0; i < 1000; ++i) deny();
  CHECK(w.denials.recent().size() == 20);
  CHECK(has(w.metrics.render(), "nodemesh_denials_unlogged_total 980\n"));
  CHECK(has(w.metrics.render(), "reason=\"STRICT_PLAINTEXT\"} 1000\n"));
  w.clock.advance(seconds(1));
  deny();
  CHECK(w.denials.recent().back().suppressed == 980);
}

TEST_CASE("the worker's open records can be visited and completed on the way") {
  Worker w;
  Record a(w.recorder, Direction::inbound), b(w.recorder, Direction::inbound),
      c(w.recorder, Direction::inbound);
  CHECK(a.id() != b.id());
  b.complete();
  std::vector<uint64_t> seen;
  w.recorder.for_each_open([&](Record& record) {
    seen.push_back(record.id());
    record.complete();
  });
  CHECK(seen == std::vector{a.id(), c.id()});
  w.recorder.for_each_open([](Record&) { CHECK(false); });
}

TEST_CASE("every reason has a response flag, and only the absence of one is a dash") {
  for (int r = 0; r < NM_REASON_COUNT; ++r) {
    std::string flag = response_flags(static_cast<Reason>(r));
    CHECK((flag == "-") == (r == 0));
  }
  CHECK_FALSE(is_denial(Reason::PEER_RESET));
  CHECK(is_denial(Reason::POLICY_NO_ALLOW));
}

TEST_CASE("the text access log has Envoy's default order with dashes for HTTP") {
  Worker w;
  Record record(w.recorder, Direction::outbound);
  fill(record);
  record.add_from_client(84);
  record.add_from_server(239);
  w.clock.advance(milliseconds(12));
  std::string line;
  format_text(record, w.clock.now(), line);
  CHECK(line ==
        "[2023-11-14T22:13:20.000Z] \"- - -\" 0 - - - \"-\" 84 239 12 - \"-\" \"-\" \"-\" \"-\" "
        "\"10.0.1.2:15008\" "
        "outbound|5432||db.shop.svc.cluster.local - 10.1.0.9:5432 10.0.0.1:40000 - -\n");
  record.complete();
}

TEST_CASE("the JSON access log is one object a line with Envoy's and ztunnel's names") {
  Worker w;
  CapturedLog log;
  Record record(w.recorder, Direction::inbound);
  fill(record);
  record.fail(Reason::POLICY_DENY, "denied by rule 2");
  record.decided_by("shop/deny");
  std::string line;
  format_json(record, w.clock.now(), line);
  auto json = nlohmann::json::parse(line);
  CHECK(line.find('\n') == line.size() - 1);
  CHECK(json["start_time"] == "2023-11-14T22:13:20.000Z");
  CHECK(json["method"].is_null());
  CHECK(json["response_flags"] == "DENY");
  CHECK(json["upstream_transport_failure_reason"] == "denied by rule 2");
  CHECK(json["connection_termination_details"] == "POLICY_DENY");
  CHECK(json["downstream_remote_address"] == "10.0.0.1:40000");
  CHECK(json["upstream_cluster"] == "inbound|5432||");
  CHECK(json["src.identity"] == "spiffe://cluster.local/ns/shop/sa/curl");
  CHECK(json["dst.workload"] == "db");
  CHECK(json["dst.namespace"] == "shop");
  CHECK(json["dst.hbone_addr"] == "10.0.1.2:15008");
  CHECK(json["direction"] == "inbound");
  CHECK(json["error"] == "denied by rule 2");
  CHECK(json["policy"] == "shop/deny");
  record.complete();
}

TEST_CASE("hostile bytes can neither end a log line nor leave a field") {
  Worker w;
  CapturedLog log;
  Record record(w.recorder, Direction::outbound);
  fill(record);
  std::string every;
  for (int c = 0; c < 256; ++c) every += static_cast<char>(c);
  WorkloadLabels evil;
  evil.workload = evil.ns = evil.cluster = every;
  record.source = record.destination = share(evil);
  record.service = share(ServiceLabels{every, every, every});
  record.source_identity = std::make_shared<const std::string>(every);
  record.fail(Reason::TLS_FAILED, every);
  record.decided_by(every);
  std::string text, json;
  format_text(record, w.clock.now(), text);
  format_json(record, w.clock.now(), json);
  for (const auto& line : {text, json}) {
    CHECK(std::ranges::all_of(line.substr(0, line.size() - 1),
                              [](unsigned char c) { return c >= 0x20 && c < 0x7f; }));
    CHECK(line.back() == '\n');
  }
  CHECK(std::ranges::count(text, '"') == 14);
  CHECK(nlohmann::json::accept(json));
  record.complete();
}

TEST_CASE("the access log is off until a file is named, then written, and follows changes at run time") {
  Worker w;
  char path[] = "/tmp/nodemesh-access-XXXXXX";
  ::close(::mkstemp(path));
  auto content = [&] {
    std::ifstream file(path);
    std::stringstream all;
    all << file.rdbuf();
    return all.str();
  };
  auto one = [&] {
    Record record(w.recorder, Direction::outbound);
    fill(record);
    record.complete();
  };
  one();
  w.log.configure(path, LogFormat::text);
  w.turn_until([&] { return w.log.format() == LogFormat::text; });
  CHECK(content().empty());
  one();
  w.turn_until([&] { return content().starts_with("[2023"); });
  w.log.configure(path, LogFormat::json);
  w.turn_until([&] { return w.log.format() == LogFormat::json; });
  one();
  w.turn_until([&] { return has(content(), "\"start_time\""); });
  w.log.configure("", LogFormat::json);
  w.turn_until([&] { return w.log.format() == LogFormat::off; });
  ::unlink(path);
}

TEST_CASE("an access log that cannot be opened stays off and says so") {
  Worker w;
  CapturedLog log;
  w.log.configure("/nonexistent/access.log", LogFormat::text);
  std::string said;
  w.turn_until([&] { return !(said += log.text()).empty(); });
  CHECK(has(said, "/nonexistent/access.log"));
  CHECK(has(said, "MeshConfig.accessLogFile"));
  CHECK(w.log.format() == LogFormat::off);
}

TEST_CASE("a pipe that nobody reads loses lines, counted, and blocks no worker") {
  Worker w;
  char dir[] = "/tmp/nodemesh-fifo-XXXXXX";
  REQUIRE(::mkdtemp(dir));
  std::string path = std::string(dir) + "/log";
  REQUIRE(::mkfifo(path.c_str(), 0600) == 0);
  Fd reader(::open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC));
  w.log.configure(path, LogFormat::text);
  w.turn_until([&] { return w.log.format() == LogFormat::text; });
  Record record(w.recorder, Direction::outbound);
  fill(record);
  auto& shard = w.recorder.access_log;
  for (int i = 0; i < 40'000; ++i) {
    shard.write(record, w.clock.now());
    if (i % 1000 == 0) w.reactor.run_once(milliseconds(0));
  }
  CHECK(w.metrics.shard(0).access_log_dropped.value() > 0);
  size_t lines = 0;
  std::string bytes(1 << 16, 0);
  auto lost = [&] { return w.metrics.shard(0).access_log_dropped.value(); };
  shard.flush();
  w.turn_until([&] {
    for (ssize_t got; (got = ::read(reader.get(), bytes.data(), bytes.size())) > 0;)
      lines += static_cast<size_t>(std::count(bytes.begin(), bytes.begin() + got, '\n'));
    return lines + lost() == 40'000;
  });
  record.complete();
  ::unlink(path.c_str());
  ::rmdir(dir);
}

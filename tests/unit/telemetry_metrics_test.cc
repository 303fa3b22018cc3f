#include <doctest/doctest.h>

#include <atomic>
#include <thread>

#include "telemetry/exposition.h"
#include "telemetry/registry.h"

using namespace nodemesh;
using namespace nodemesh::telemetry;

namespace {

TcpLabels labels_of(std::string workload, Reporter reporter = Reporter::source) {
  WorkloadLabels source;
  source.workload = std::move(workload);
  source.ns = "shop";
  source.principal = "spiffe://cluster.local/ns/shop/sa/web";
  TcpLabels labels;
  labels.source = share(source);
  labels.service = share(ServiceLabels{"db.shop.svc.cluster.local", "db", "shop"});
  labels.reporter = reporter;
  labels.security = Security::mutual_tls;
  return labels;
}

bool has(const std::string& text, std::string_view part) {
  return text.find(part) != text.npos;
}

struct Fixture {
  ManualClock clock;
  Metrics metrics;
  explicit Fixture(size_t max_series = 100, size_t shards = 2)
      : metrics({.max_series = max_series, .version = "1.2.3", .shards = shards}, clock) {
    clock.advance(std::chrono::duration_cast<Monotonic::duration>(Monotonic::now().time_since_epoch()));
  }
};

}  // namespace

TEST_CASE("a TCP series is written with Istio's full label set, unknown where nothing is known") {
  Fixture f;
  auto series = f.metrics.shard(0).tcp(labels_of("web"));
  series->opened.add();
  series->sent.add(239);
  CHECK(has(
      f.metrics.render(),
      "istio_tcp_sent_bytes_total{reporter=\"source\",source_workload=\"web\",source_workload_namespace="
      "\"shop\","
      "source_principal=\"spiffe://cluster.local/ns/shop/sa/"
      "web\",source_app=\"unknown\",source_version=\"unknown\","
      "source_cluster=\"unknown\",source_canonical_service=\"unknown\",source_canonical_revision=\"latest\","
      "source_region=\"unknown\",source_zone=\"unknown\",destination_workload=\"unknown\","
      "destination_workload_namespace=\"unknown\",destination_principal=\"unknown\",destination_app="
      "\"unknown\","
      "destination_version=\"unknown\",destination_cluster=\"unknown\",destination_canonical_service="
      "\"unknown\","
      "destination_canonical_revision=\"unknown\",destination_region=\"unknown\",destination_zone="
      "\"unknown\","
      "destination_service=\"db.shop.svc.cluster.local\",destination_service_name=\"db\","
      "destination_service_namespace=\"shop\",request_protocol=\"tcp\",response_flags=\"-\","
      "connection_security_policy=\"mutual_tls\"} 239\n"));
}

TEST_CASE("workers that meet equal labels add to one series") {
  Fixture f;
  auto first = f.metrics.shard(0).tcp(labels_of("web"));
  auto second = f.metrics.shard(1).tcp(labels_of("web"));
  first->opened.add(2);
  second->opened.add(3);
  CHECK(f.metrics.series() == 1);
  auto text = f.metrics.render();
  CHECK(has(text, "connection_security_policy=\"mutual_tls\"} 5\n"));
  CHECK(has(text, "istio_tcp_sockets_open{reporter=\"source\"} 5\n"));
}

TEST_CASE("an identity that was not proven is not written as a principal") {
  auto labels = labels_of("web");
  labels.source_verified = false;
  auto text = tcp_label_text(labels);
  CHECK(has(text, "source_principal=\"unknown\""));
  CHECK(has(text, "source_workload=\"web\""));
}

TEST_CASE("labels that are written alike are one series") {
  Fixture f;
  auto& shard = f.metrics.shard(0);
  TcpLabels one, two;
  two.source_verified = two.destination_verified = false;
  CHECK_FALSE(one == two);
  auto a = shard.tcp(one), b = shard.tcp(two), c = shard.tcp(two);
  CHECK(a.get() == b.get());
  CHECK(b.get() == c.get());
  CHECK(f.metrics.series() == 1);
}

TEST_CASE("label values escape quotes, backslashes and newlines and replace bytes that are not UTF-8") {
  std::string out;
  append_label_value(out, "a\"b\\c\nd\xff\xc0\xaf\xed\xa0\x80 \xc3\xa9 \xf0\x9f\x90\x9d");
  CHECK(out == "a\\\"b\\\\c\\nd?????? \xc3\xa9 \xf0\x9f\x90\x9d");
}

TEST_CASE("beyond the cap new label sets are counted as other and the overflow shows") {
  Fixture f(2);
  auto& shard = f.metrics.shard(0);
  auto a = shard.tcp(labels_of("a")), b = shard.tcp(labels_of("b")), c = shard.tcp(labels_of("c")),
       d = shard.tcp(labels_of("d"));
  CHECK(f.metrics.series() == 2);
  CHECK(c.get() == d.get());
  c->opened.add();
  d->opened.add();
  auto text = f.metrics.render();
  CHECK(has(text, "nodemesh_metrics_overflow_total 2\n"));
  CHECK(has(text, "source_workload=\"other\""));
  CHECK_FALSE(has(text, "source_workload=\"c\""));
  CHECK(shard.tcp(labels_of("a")).get() == a.get());
}

TEST_CASE("a series expires only when its workload is gone, no connection holds it and the time has passed") {
  Fixture f;
  auto& shard = f.metrics.shard(0);
  auto held = shard.tcp(labels_of("held"));
  shard.tcp(labels_of("idle"))->opened.add();
  shard.tcp(labels_of("alive"))->opened.add();
  auto is_live = [](const WorkloadLabels& w) { return w.workload == "alive"; };
  CHECK(f.metrics.expire(is_live) == 0);
  f.clock.advance(seconds(200));
  CHECK(f.metrics.expire(is_live) == 0);
  f.clock.advance(seconds(200));
  CHECK(f.metrics.expire(is_live) == 1);
  auto text = f.metrics.render();
  CHECK_FALSE(has(text, "source_workload=\"idle\""));
  CHECK(has(text, "source_workload=\"alive\""));
  held->opened.add();
  CHECK(has(f.metrics.render(), "source_workload=\"held\""));
}

TEST_CASE("a retired series starts anew when its labels come back") {
  Fixture f;
  auto& shard = f.metrics.shard(0);
  shard.tcp(labels_of("a"))->opened.add(7);
  auto nobody = [](const WorkloadLabels&) { return false; };
  f.metrics.expire(nobody);
  f.clock.advance(seconds(400));
  REQUIRE(f.metrics.expire(nobody) == 1);
  auto again = shard.tcp(labels_of("a"));
  CHECK(again->opened.value() == 0);
  again->opened.add();
  CHECK(f.metrics.series() == 1);
  CHECK(has(f.metrics.render(), "connection_security_policy=\"mutual_tls\"} 1\n"));
}

TEST_CASE("a workload that comes back before the time keeps its counters") {
  Fixture f;
  f.metrics.shard(0).tcp(labels_of("a"))->opened.add(7);
  f.metrics.expire([](const WorkloadLabels&) { return false; });
  f.clock.advance(seconds(299));
  f.metrics.expire([](const WorkloadLabels&) { return true; });
  f.clock.advance(seconds(2));
  CHECK(f.metrics.expire([](const WorkloadLabels&) { return false; }) == 0);
}

TEST_CASE("no count is lost and no scrape goes backwards while workers count and series expire") {
  ManualClock clock;
  Metrics metrics({.max_series = 50, .expiry = seconds(0), .shards = 2}, clock);
  clock.advance(std::chrono::hours(24 * 365 * 100));
  constexpr int kRounds = 20'000;
  std::atomic<int> running{2};
  auto work = [&](size_t number) {
    for (int i = 0; i < kRounds; ++i) {
      auto held = metrics.shard(number).tcp(labels_of("stays"));
      held->opened.add();
      metrics.shard(number).tcp(labels_of("w" + std::to_string(i % 7)))->opened.add();
    }
    --running;
  };
  std::thread one(work, 0), two(work, 1);
  auto is_live = [](const WorkloadLabels& w) { return w.workload == "stays"; };
  uint64_t last = 0;
  auto count_of = [](const std::string& text) {
    auto at = text.find("opened_total{reporter=\"source\",source_workload=\"stays\"");
    if (at == text.npos) return uint64_t{0};
    return static_cast<uint64_t>(std::stoull(text.substr(text.find("} ", at) + 2)));
  };
  while (running) {
    metrics.expire(is_live);
    auto now = count_of(metrics.render());
    CHECK(now >= last);
    last = now;
  }
  one.join();
  two.join();
  CHECK(count_of(metrics.render()) == 2 * kRounds);
}

TEST_CASE(
    "handshakes are counted by side, outcome and resumption, with a cumulative histogram of the good ones") {
  Fixture f;
  auto& shard = f.metrics.shard(0);
  shard.tls_handshake(TlsSide::client, Reason::NONE, false, milliseconds(2));
  shard.tls_handshake(TlsSide::client, Reason::NONE, true, milliseconds(1));
  shard.tls_handshake(TlsSide::server, Reason::PEER_CERT_MISSING, false, milliseconds(1));
  auto text = f.metrics.render();
  CHECK(has(
      text,
      "nodemesh_tls_handshakes_total{side=\"client\",result=\"ok\",reason=\"NONE\",resumed=\"true\"} 1\n"));
  CHECK(has(text,
            "nodemesh_tls_handshakes_total{side=\"server\",result=\"failed\",reason=\"PEER_CERT_MISSING\","
            "resumed=\"false\"} 1\n"));
  CHECK(has(text, "nodemesh_tls_handshake_seconds_bucket{side=\"client\",le=\"0.001\"} 1\n"));
  CHECK(has(text, "nodemesh_tls_handshake_seconds_bucket{side=\"client\",le=\"0.0025\"} 2\n"));
  CHECK(has(text, "nodemesh_tls_handshake_seconds_bucket{side=\"client\",le=\"+Inf\"} 2\n"));
  CHECK(has(text, "nodemesh_tls_handshake_seconds_sum{side=\"client\"} 0.003\n"));
  CHECK(has(text, "nodemesh_tls_handshake_seconds_count{side=\"server\"} 0\n"));
}

TEST_CASE(
    "what other threads report is written: certificates, configuration, kernel counters, dry runs, build") {
  Fixture f;
  f.metrics.set_certificate("spiffe://cluster.local/ns/shop/sa/web",
                            WallClock::time_point(seconds(2'000'000'000)));
  f.metrics.set_certificate("spiffe://cluster.local/ns/shop/sa/gone", WallClock::time_point(seconds(1)));
  f.metrics.remove_certificate("spiffe://cluster.local/ns/shop/sa/gone");
  f.metrics.set_config(7, f.clock.wall() - seconds(3), 2);
  std::vector<uint64_t> drops(NM_REASON_COUNT), events(NM_COUNT_COUNTERS);
  drops[NM_REASON_NO_LISTENER] = 4;
  events[NM_COUNT_CAPTURED] = 9;
  f.metrics.set_kernel(drops, events);
  f.metrics.shard(0).policy_dry_run("shop/try", false);
  auto text = f.metrics.render();
  CHECK(has(text,
            "nodemesh_certificate_expiry_seconds{identity=\"spiffe://cluster.local/ns/shop/sa/web\"} "
            "2000000000\n"));
  CHECK_FALSE(has(text, "sa/gone"));
  CHECK(has(text, "nodemesh_config_generation 7\n"));
  CHECK(has(text, "nodemesh_config_age_seconds 3\n"));
  CHECK(has(text, "nodemesh_config_rejected_objects 2\n"));
  CHECK(has(text, "nodemesh_kernel_drops_total{reason=\"NO_LISTENER\"} 4\n"));
  CHECK(has(text, "nodemesh_kernel_events_total{event=\"captured\"} 9\n"));
  CHECK(has(text, "nodemesh_policy_dry_run_total{policy=\"shop/try\",result=\"deny\"} 1\n"));
  CHECK(has(text, "istio_build{component=\"nodemesh\",tag=\"1.2.3\"} 1\n"));
  CHECK(has(text, "nodemesh_build_info{version=\"1.2.3\"} 1\n"));
  CHECK_FALSE(has(text, "process_resident_memory_bytes 0\n"));
  CHECK_FALSE(has(text, "process_open_fds 0\n"));
}

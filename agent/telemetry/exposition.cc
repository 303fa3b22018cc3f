#include "telemetry/exposition.h"

#include <charconv>
#include <cmath>

#include "telemetry/process_stats.h"
#include "telemetry/registry.h"
#include "telemetry/utf8.h"

namespace nodemesh::telemetry {
namespace {

template <class T>
void append_number(std::string& out, T value) {
  char text[40];
  auto [end, error] = std::to_chars(text, text + sizeof text, value);
  out.append(text, end);
}

void append_label(std::string& out, std::string_view name, std::string_view value) {
  if (out.back() != '{') out += ',';
  out += name;
  out += "=\"";
  append_label_value(out, value);
  out += '"';
}

std::string_view or_unknown(std::string_view value) {
  return value.empty() ? "unknown" : value;
}

// Names of one side's labels, spelled out so that a search for a label finds it.
struct SideNames {
  std::string_view workload, ns, principal, app, version, cluster, service, revision, region, zone;
};
constexpr SideNames kSource = {"source_workload",
                               "source_workload_namespace",
                               "source_principal",
                               "source_app",
                               "source_version",
                               "source_cluster",
                               "source_canonical_service",
                               "source_canonical_revision",
                               "source_region",
                               "source_zone"};
constexpr SideNames kDestination = {"destination_workload",
                                    "destination_workload_namespace",
                                    "destination_principal",
                                    "destination_app",
                                    "destination_version",
                                    "destination_cluster",
                                    "destination_canonical_service",
                                    "destination_canonical_revision",
                                    "destination_region",
                                    "destination_zone"};

void append_side(std::string& out, const SideNames& names, const WorkloadLabels* labels, bool verified) {
  static const WorkloadLabels kNobody;
  const auto& l = labels ? *labels : kNobody;
  append_label(out, names.workload, or_unknown(l.workload));
  append_label(out, names.ns, or_unknown(l.ns));
  append_label(out, names.principal, or_unknown(verified ? l.principal : ""));
  append_label(out, names.app, or_unknown(l.app));
  append_label(out, names.version, or_unknown(l.version));
  append_label(out, names.cluster, or_unknown(l.cluster));
  append_label(out, names.service, or_unknown(l.canonical_service));
  bool latest = labels && l.canonical_revision.empty();
  append_label(out, names.revision, latest ? "latest" : or_unknown(l.canonical_revision));
  append_label(out, names.region, or_unknown(l.region));
  append_label(out, names.zone, or_unknown(l.zone));
}

constexpr std::string_view kEventNames[] = {"captured",     "steered_inbound", "steered_hbone",
                                            "probe_passed", "unknown_passed",  "fail_open_passed"};
static_assert(std::size(kEventNames) == NM_COUNT_COUNTERS);

}  // namespace

void append_label_value(std::string& out, std::string_view value) {
  for (size_t i = 0; i < value.size();) {
    size_t length = utf8_length(value.substr(i));
    if (length == 0) {
      out += '?';
      ++i;
      continue;
    }
    switch (value[i]) {
      case '\\':
        out += "\\\\";
        break;
      case '"':
        out += "\\\"";
        break;
      case '\n':
        out += "\\n";
        break;
      default:
        out.append(value.substr(i, length));
    }
    i += length;
  }
}

std::string tcp_label_text(const TcpLabels& labels) {
  static const ServiceLabels kNoService;
  const auto& service = labels.service ? *labels.service : kNoService;
  std::string out = "{";
  append_label(out, "reporter", labels.reporter == Reporter::source ? "source" : "destination");
  append_side(out, kSource, labels.source.get(), labels.source_verified);
  append_side(out, kDestination, labels.destination.get(), labels.destination_verified);
  append_label(out, "destination_service", or_unknown(service.host));
  append_label(out, "destination_service_name", or_unknown(service.name));
  append_label(out, "destination_service_namespace", or_unknown(service.ns));
  append_label(out, "request_protocol", "tcp");
  append_label(out, "response_flags", labels.response_flags);
  append_label(out, "connection_security_policy", name(labels.security));
  return out + "}";
}

std::string Exposition::render() {
  {
    std::lock_guard lock(metrics_.mutex_);
    sets_.reserve(metrics_.sets_.size() + 2);
    for (const auto& [text, set] : metrics_.sets_) sets_.push_back(set);
    if (metrics_.overflow_) sets_.insert(sets_.end(), metrics_.other_.begin(), metrics_.other_.end());
  }
  out_.reserve(16'384 + sets_.size() * 4 * 1'200);
  tcp();
  connections();
  handshakes();
  handshake_seconds();
  tunnels();
  configuration();
  kernel();
  policy();
  process();
  return std::move(out_);
}

void Exposition::head(std::string_view metric, std::string_view type, std::string_view help) {
  for (auto part :
       {std::string_view("# HELP "), metric, std::string_view(" "), help, std::string_view("\n# TYPE "),
        metric, std::string_view(" "), type, std::string_view("\n")}) {
    out_ += part;
  }
}

void Exposition::sample(std::string_view metric, Labels labels, int64_t value) {
  out_ += metric;
  if (labels.size()) {
    out_ += '{';
    for (const auto& [key, text] : labels) append_label(out_, key, text);
    out_ += '}';
  }
  out_ += ' ';
  append_number(out_, value);
  out_ += '\n';
}

void Exposition::sample(std::string_view metric, Labels labels, double value) {
  sample(metric, labels, int64_t{0});
  out_.resize(out_.size() - 2);
  append_number(out_, value);
  out_ += '\n';
}

void Exposition::tcp_family(std::string_view metric, std::string_view help,
                            const Counter TcpSeries::* counter, bool if_nonzero) {
  head(metric, "counter", help);
  for (const auto& set : sets_) {
    uint64_t total = 0;
    for (const auto& slot : set->shards) {
      if (const auto* series = slot.load(std::memory_order_acquire)) total += (series->*counter).value();
    }
    if (if_nonzero && total == 0) continue;
    out_ += metric;
    out_ += set->text;
    out_ += ' ';
    append_number(out_, total);
    out_ += '\n';
  }
}

// A set that only counts failures has nothing to say about connections, and the other way round.
void Exposition::tcp() {
  tcp_family("istio_tcp_connections_opened_total", "The total number of TCP connections opened.",
             &TcpSeries::opened, true);
  tcp_family("istio_tcp_connections_closed_total", "The total number of TCP connections closed.",
             &TcpSeries::closed, true);
  tcp_family("istio_tcp_connections_failed_total",
             "The total number of TCP connections that failed or were denied.", &TcpSeries::failed, true);
  tcp_family("istio_tcp_received_bytes_total", "Bytes received from clients of TCP connections.",
             &TcpSeries::received, true);
  tcp_family("istio_tcp_sent_bytes_total", "Bytes sent to clients of TCP connections.", &TcpSeries::sent,
             true);
  sockets_open();
}

void Exposition::sockets_open() {
  uint64_t open[2] = {};
  for (const auto& set : sets_) {
    for (const auto& slot : set->shards) {
      const auto* series = slot.load(std::memory_order_acquire);
      if (!series) continue;
      // Closed first: a connection that opens between the two reads must not make the difference negative.
      uint64_t closed = series->closed.value();
      std::atomic_thread_fence(std::memory_order_acquire);
      open[static_cast<size_t>(set->labels.reporter)] += series->opened.value() - closed;
    }
  }
  head("istio_tcp_sockets_open", "gauge", "TCP connections open now.");
  sample("istio_tcp_sockets_open", {{"reporter", "source"}}, static_cast<int64_t>(open[0]));
  sample("istio_tcp_sockets_open", {{"reporter", "destination"}}, static_cast<int64_t>(open[1]));
}

void Exposition::connections() {
  head("nodemesh_connections_open", "gauge", "Connections open now, by direction and path.");
  for (size_t d = 0; d < kDirections; ++d) {
    for (size_t p = 0; p < kPaths; ++p) {
      int64_t open = 0;
      for (const auto& shard : metrics_.shards_) open += shard->open_[d * kPaths + p].value();
      sample("nodemesh_connections_open",
             {{"direction", name(static_cast<Direction>(d))}, {"path", name(static_cast<Path>(p))}}, open);
    }
  }
  head("nodemesh_connections_total", "counter",
       "Connections that ended, by the reason they ended (NONE: normally).");
  for (size_t d = 0; d < kDirections; ++d) {
    for (size_t p = 0; p < kPaths; ++p) {
      for (size_t r = 0; r < kReasons; ++r) {
        uint64_t total = 0;
        for (const auto& shard : metrics_.shards_) total += shard->total_[d * kPaths + p][r].value();
        if (total == 0) continue;
        sample("nodemesh_connections_total",
               {{"direction", name(static_cast<Direction>(d))},
                {"path", name(static_cast<Path>(p))},
                {"reason", reason_name(static_cast<Reason>(r))}},
               static_cast<int64_t>(total));
      }
    }
  }
}

void Exposition::handshakes() {
  static constexpr std::string_view kSides[] = {"client", "server"};
  head("nodemesh_tls_handshakes_total", "counter", "TLS handshakes, by outcome (NONE: succeeded).");
  for (size_t side = 0; side < 2; ++side) {
    for (size_t r = 0; r < kReasons; ++r) {
      for (size_t resumed = 0; resumed < 2; ++resumed) {
        uint64_t total = 0;
        for (const auto& shard : metrics_.shards_) total += shard->handshakes_[side][r][resumed].value();
        if (total == 0) continue;
        sample("nodemesh_tls_handshakes_total",
               {{"side", kSides[side]},
                {"result", r == 0 ? "ok" : "failed"},
                {"reason", reason_name(static_cast<Reason>(r))},
                {"resumed", resumed ? "true" : "false"}},
               static_cast<int64_t>(total));
      }
    }
  }
}

void Exposition::handshake_seconds() {
  static constexpr std::string_view kSides[] = {"client", "server"};
  head("nodemesh_tls_handshake_seconds", "histogram", "Duration of successful TLS handshakes.");
  for (size_t side = 0; side < 2; ++side) {
    std::array<uint64_t, Histogram::kBounds.size() + 1> buckets{};
    uint64_t sum_ns = 0, cumulative = 0;
    for (const auto& shard : metrics_.shards_) shard->handshake_seconds_[side].add_to(buckets, sum_ns);
    for (size_t i = 0; i < buckets.size(); ++i) {
      std::string bound = "+Inf";
      if (i < Histogram::kBounds.size()) {
        bound.clear();
        append_number(bound, Histogram::kBounds[i]);
      }
      cumulative += buckets[i];
      sample("nodemesh_tls_handshake_seconds_bucket", {{"side", kSides[side]}, {"le", bound}},
             static_cast<int64_t>(cumulative));
    }
    sample("nodemesh_tls_handshake_seconds_sum", {{"side", kSides[side]}}, static_cast<double>(sum_ns) / 1e9);
    sample("nodemesh_tls_handshake_seconds_count", {{"side", kSides[side]}},
           static_cast<int64_t>(cumulative));
  }
}

void Exposition::tunnels() {
  int64_t tunnels = 0, streams = 0, unlogged = 0, dropped = 0, starved = 0;
  for (const auto& shard : metrics_.shards_) {
    tunnels += shard->tunnels_open.value();
    streams += shard->tunnel_streams_open.value();
    unlogged += static_cast<int64_t>(shard->denials_unlogged.value());
    starved += static_cast<int64_t>(shard->accepts_starved.value());
    dropped += static_cast<int64_t>(shard->access_log_dropped.value());
  }
  head("nodemesh_tunnels_open", "gauge", "HBONE connections open now.");
  sample("nodemesh_tunnels_open", {}, tunnels);
  head("nodemesh_tunnel_streams_open", "gauge", "Streams open now on HBONE connections.");
  sample("nodemesh_tunnel_streams_open", {}, streams);
  head("nodemesh_denials_unlogged_total", "counter", "Denials above the rate at which they are logged.");
  sample("nodemesh_denials_unlogged_total", {}, unlogged);
  head("nodemesh_accepts_starved_total", "counter",
       "Accepts that failed for lack of file descriptors; the connections wait.");
  sample("nodemesh_accepts_starved_total", {}, starved);
  head("nodemesh_access_log_dropped_total", "counter",
       "Access log lines lost because the log's reader is slow.");
  sample("nodemesh_access_log_dropped_total", {}, dropped);
}

void Exposition::config_source() {
  const auto& source = metrics_.source_;
  head("nodemesh_config_source", "gauge", "1 for where the configuration in force comes from.");
  for (std::string_view origin : {"folder", "api", "snapshot"})
    sample("nodemesh_config_source", {{"source", origin}}, int64_t{origin == source.origin});
  head("nodemesh_config_contact_age_seconds", "gauge",
       "Since the API server last confirmed the kind that it confirmed longest ago.");
  if (source.contact_age)
    sample("nodemesh_config_contact_age_seconds", {}, int64_t{source.contact_age->count()});
  head("nodemesh_config_troubles", "gauge", "Kinds of objects that are not read yet or may be stale.");
  sample("nodemesh_config_troubles", {}, static_cast<int64_t>(source.troubles));
  head("nodemesh_config_snapshot_failed", "gauge",
       "1 when a start without the API server has, or would have, no configuration.");
  sample("nodemesh_config_snapshot_failed", {}, int64_t{source.snapshot_failed});
  head("nodemesh_slices_failed", "gauge", "1 while other nodes cannot be told of this node's pods.");
  sample("nodemesh_slices_failed", {}, int64_t{source.slices_failed});
}

void Exposition::configuration() {
  std::lock_guard lock(metrics_.mutex_);
  head("nodemesh_certificate_expiry_seconds", "gauge",
       "When the certificate of an identity expires, in Unix time.");
  for (const auto& [identity, expiry] : metrics_.certificates_) {
    sample("nodemesh_certificate_expiry_seconds", {{"identity", identity}}, expiry);
  }
  head("nodemesh_config_generation", "gauge", "Generation of the configuration in force.");
  sample("nodemesh_config_generation", {}, static_cast<int64_t>(metrics_.generation_));
  auto now = std::chrono::duration_cast<seconds>(metrics_.clock_.wall().time_since_epoch()).count();
  head("nodemesh_config_age_seconds", "gauge",
       "Time since the source of configuration was last known to be in force.");
  if (metrics_.applied_)
    sample("nodemesh_config_age_seconds", {}, int64_t{std::max<int64_t>(now - metrics_.applied_, 0)});
  head("nodemesh_config_rejected_objects", "gauge", "Objects whose last version was refused.");
  sample("nodemesh_config_rejected_objects", {}, static_cast<int64_t>(metrics_.rejected_));
  config_source();
  head("nodemesh_metrics_overflow_total", "counter",
       "Lookups that met the cap on TCP series and were counted as other.");
  sample("nodemesh_metrics_overflow_total", {}, static_cast<int64_t>(metrics_.overflow_));
  head("nodemesh_metrics_series", "gauge", "TCP label sets that exist now.");
  sample("nodemesh_metrics_series", {}, static_cast<int64_t>(metrics_.sets_.size()));
}

void Exposition::kernel() {
  std::lock_guard lock(metrics_.mutex_);
  head("nodemesh_kernel_drops_total", "counter", "Connections refused by the kernel programs, by reason.");
  for (size_t r = 1; r < metrics_.kernel_drops_.size() && r < kReasons; ++r) {
    // The kernel programs' own reasons are always there, so that a rate of zero can be seen.
    if (metrics_.kernel_drops_[r] == 0 && r > static_cast<size_t>(Reason::UNPUBLISHED)) continue;
    sample("nodemesh_kernel_drops_total", {{"reason", reason_name(static_cast<Reason>(r))}},
           static_cast<int64_t>(metrics_.kernel_drops_[r]));
  }
  head("nodemesh_kernel_events_total", "counter", "What the kernel programs did.");
  for (size_t e = 0; e < metrics_.kernel_events_.size() && e < std::size(kEventNames); ++e) {
    sample("nodemesh_kernel_events_total", {{"event", kEventNames[e]}},
           static_cast<int64_t>(metrics_.kernel_events_[e]));
  }
}

void Exposition::policy() {
  std::lock_guard lock(metrics_.mutex_);
  head("nodemesh_policy_dry_run_total", "counter", "Verdicts of policies in dry-run mode.");
  for (const auto& [key, total] : metrics_.dry_runs_) {
    sample("nodemesh_policy_dry_run_total",
           {{"policy", key.first}, {"result", key.second ? "allow" : "deny"}}, static_cast<int64_t>(total));
  }
}

void Exposition::process() {
  const auto& version = metrics_.options_.version;
  head("nodemesh_build_info", "gauge", "Always 1; the version is a label.");
  sample("nodemesh_build_info", {{"version", version}}, int64_t{1});
  head("istio_build", "gauge", "Always 1; component and version are labels.");
  sample("istio_build", {{"component", "nodemesh"}, {"tag", version}}, int64_t{1});
  auto stats = read_process_stats();
  head("process_open_fds", "gauge", "Number of open file descriptors.");
  sample("process_open_fds", {}, stats.open_fds);
  head("process_max_fds", "gauge", "Maximum number of open file descriptors.");
  sample("process_max_fds", {}, stats.max_fds);
  head("process_resident_memory_bytes", "gauge", "Resident memory size in bytes.");
  sample("process_resident_memory_bytes", {}, stats.resident_bytes);
  head("process_cpu_seconds_total", "counter", "Total user and system CPU time spent in seconds.");
  sample("process_cpu_seconds_total", {}, stats.cpu_seconds);
  head("process_start_time_seconds", "gauge", "Start time of the process since the Unix epoch in seconds.");
  sample("process_start_time_seconds", {}, stats.start_seconds);
}

}  // namespace nodemesh::telemetry

#include "controller/metrics.h"

#include <fmt/format.h>

#include "telemetry/process_stats.h"

namespace nodemesh::controller {
namespace {

class Page {
 public:
  void metric(std::string_view name, std::string_view type, std::string_view help, double value) {
    head(name, type, help);
    text += fmt::format("{} {}\n", name, value);
  }
  void head(std::string_view name, std::string_view type, std::string_view help) {
    text += fmt::format("# HELP {} {}\n# TYPE {} {}\n", name, help, name, type);
  }
  std::string text;
};

double epoch(WallClock::time_point time) {
  return static_cast<double>(WallClock::to_time_t(time));
}

void authority(Page& page, const ControllerFigures& figures) {
  page.metric("nodemesh_ca_issued_total", "counter", "Workload certificates signed.",
              static_cast<double>(figures.issuer.issued));
  page.head("nodemesh_ca_refused_total", "counter", "Certificate requests refused, by reason.");
  for (size_t i = 0; i < figures.issuer.refused.size(); ++i) {
    page.text += fmt::format("nodemesh_ca_refused_total{{reason=\"{}\"}} {}\n", name(static_cast<Refusal>(i)),
                             figures.issuer.refused[i]);
  }
  page.metric("nodemesh_ca_refusals_unlogged_total", "counter", "Refusals above the log's rate.",
              static_cast<double>(figures.issuer.unlogged));
  page.metric("nodemesh_ca_signer_not_after_seconds", "gauge",
              "When the signing certificate or its root ends, in Unix time; 0: there is none.",
              epoch(figures.signer_not_after));
  page.metric("nodemesh_ca_server_certificate_not_after_seconds", "gauge",
              "When the certificate of the gRPC port ends, in Unix time; 0: there is none.",
              epoch(figures.server_not_after));
  page.metric("nodemesh_ca_next_signer_seconds", "gauge",
              "When the announced next signer begins, in Unix time; 0: none is announced.",
              epoch(figures.next_signs_at));
  page.metric("nodemesh_ca_secrets_good", "gauge", "1 when nothing is wrong with the authority's Secrets.",
              figures.secrets_good ? 1 : 0);
  page.metric("nodemesh_ca_trust_bundle_good", "gauge",
              "1 unless this replica leads and cannot publish the trust bundle.",
              figures.bundle_good ? 1 : 0);
  page.metric("nodemesh_ca_connections_open", "gauge", "TCP connections of the gRPC port.",
              static_cast<double>(figures.connections));
  page.metric("nodemesh_ca_connections_total", "counter", "Connections accepted.",
              static_cast<double>(figures.front.accepted));
  page.metric("nodemesh_ca_connections_refused_total", "counter",
              "Connections refused at a limit, or before there was a certificate.",
              static_cast<double>(figures.front.refused));
  page.metric("nodemesh_ca_handshakes_failed_total", "counter", "TLS handshakes that did not end well.",
              static_cast<double>(figures.front.failed_handshakes));
}

}  // namespace

std::string render_metrics(const ControllerFigures& figures) {
  Page page;
  page.head("nodemesh_build_info", "gauge", "The version of this process.");
  page.text += fmt::format("nodemesh_build_info{{version=\"{}\"}} 1\n", figures.version);
  if (figures.authority) authority(page, figures);
  page.metric("nodemesh_controller_leader", "gauge", "1 in the replica that leads.", figures.leads ? 1 : 0);
  page.metric("nodemesh_controller_pods", "gauge", "Pods known from the watch.",
              static_cast<double>(figures.pods));
  page.metric("nodemesh_controller_pods_synced", "gauge", "1 once all Pods have been listed.",
              figures.pods_synced ? 1 : 0);
  page.metric("nodemesh_controller_agentless_nodes", "gauge",
              "Nodes without an agent, whose WorkloadSlices this replica writes.",
              static_cast<double>(figures.duties.agentless_nodes));
  page.head("nodemesh_controller_writes_total", "counter", "Writes as the leader, by what was written.");
  for (auto [what, count] : {std::pair("slice", figures.duties.slice_writes),
                             std::pair("policy_status", figures.duties.status_writes),
                             std::pair("pod_mark", figures.duties.mark_writes)})
    page.text += fmt::format("nodemesh_controller_writes_total{{what=\"{}\"}} {}\n", what, count);
  auto process = telemetry::read_process_stats();
  page.metric("process_cpu_seconds_total", "counter", "CPU time spent.", process.cpu_seconds);
  page.metric("process_resident_memory_bytes", "gauge", "Resident memory.",
              static_cast<double>(process.resident_bytes));
  page.metric("process_open_fds", "gauge", "Open descriptors.", static_cast<double>(process.open_fds));
  page.metric("process_start_time_seconds", "gauge", "Start, in Unix time.", process.start_seconds);
  return std::move(page.text);
}

}  // namespace nodemesh::controller

#include "app/proxy_sources.h"

#include <unistd.h>

#include <algorithm>
#include <future>
#include <map>
#include <memory>
#include <mutex>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "admin/rows.h"
#include "model/authorize.h"
#include "translate/dump.h"

namespace nodemesh::app {
namespace {

using nlohmann::json;

std::string place(const model::Origin& origin) {
  return origin.file.empty() ? "" : fmt::format("{}:{}", origin.file, origin.line);
}

std::string state_of(const std::vector<kube::Status>& statuses, std::string_view kind, const std::string& ns,
                     const std::string& name) {
  for (const auto& status : statuses) {
    if (status.kind == kind && status.ns == ns && status.name == name) return kube::state_name(status.state);
  }
  return "";
}

json workload_rows(const proxy::Control& control, const std::string& node) {
  json rows = json::array();
  for (const auto& workload : control.snapshot()->workloads()) {
    std::vector<std::string> addresses;
    for (const auto& address : workload->addresses) addresses.push_back(address.to_string());
    rows.push_back({{"name", workload->name},
                    {"namespace", workload->ns},
                    {"addresses", addresses},
                    {"node", workload->node},
                    {"identity", workload->identity},
                    {"protocol", workload->mesh == model::Mesh::hbone ? "HBONE" : "TCP"},
                    {"local", workload->node == node},
                    {"enrolled", workload->enrolled},
                    {"status", workload->origin.kind == "Pod"
                                   ? state_of(control.statuses(), "Pod", workload->ns, workload->name)
                                   : ""},
                    {"origin", place(workload->origin)}});
  }
  return rows;
}

json service_rows(const proxy::Control& control) {
  json rows = json::array();
  for (const auto& service : control.snapshot()->services()) {
    json addresses = json::array(), ports = json::array();
    for (const auto& vip : service->vips) addresses.push_back(vip.to_string());
    size_t endpoints = 0, ready = 0;
    for (const auto& port : service->ports) {
      json row = {
          {"name", port.name}, {"port", port.port}, {"protocol", model::protocol_name(port.protocol)}};
      if (!port.endpoints.empty()) row["target_port"] = port.endpoints.front().port;
      ports.push_back(std::move(row));
      endpoints = std::max(endpoints, port.endpoints.size());
      ready = std::max<size_t>(ready, port.usable_v4 + port.usable_v6);
    }
    rows.push_back({{"name", service->name},
                    {"namespace", service->ns},
                    {"host", service->host},
                    {"addresses", addresses},
                    {"ports", ports},
                    {"endpoints", endpoints},
                    {"ready", ready},
                    {"origin", place(service->origin)}});
  }
  return rows;
}

// Every policy object once, whichever workloads it applies to; those in force nowhere come from the statuses.
json policy_rows(const proxy::Control& control) {
  std::map<std::tuple<std::string, std::string, std::string>, json> rows;
  const auto& root = control.snapshot()->mesh().root_namespace;
  for (const auto& status : control.statuses()) {
    if (status.kind != "AuthorizationPolicy" && status.kind != "PeerAuthentication") continue;
    rows[{status.kind, status.ns, status.name}] = {
        {"kind", status.kind},
        {"namespace", status.ns},
        {"name", status.name},
        {"scope", status.ns == root ? "mesh" : "namespace"},
        {"action", ""},
        {"dry_run", false},
        {"status", kube::state_name(status.state)},
        {"origin", fmt::format("{}:{}", status.file, status.line)}};
  }
  for (const auto& workload : control.snapshot()->workloads()) {
    if (workload->policy == nullptr) continue;
    auto note_mtls = [&](const model::MtlsRule& rule) {
      auto found = rows.find({"PeerAuthentication", rule.origin.ns, rule.origin.name});
      if (found != rows.end()) found->second["action"] = model::mtls_mode_name(rule.mode);
    };
    note_mtls(workload->policy->mtls);
    for (const auto& port : workload->policy->port_mtls) note_mtls(port.rule);
    for (const auto& applied : workload->policy->policies) {
      auto found = rows.find({"AuthorizationPolicy", applied.policy->origin.ns, applied.policy->origin.name});
      if (found == rows.end()) continue;
      found->second["action"] = model::action_name(applied.policy->action);
      found->second["dry_run"] = applied.policy->dry_run;
    }
  }
  json out = json::array();
  for (auto& [key, row] : rows) out.push_back(std::move(row));
  return out;
}

json cert_rows(const proxy::Control& control, const Clock& clock) {
  json rows = json::array();
  for (const auto& status : control.credentials().status()) {
    json row = {{"identity", status.uri}, {"state", status.serial.empty() ? "missing" : "valid"}};
    if (!status.last_error.empty()) row["error"] = status.last_error;
    if (!status.serial.empty()) {
      if (status.not_after <= clock.wall()) row["state"] = "expired";
      row["serial"] = status.serial;
      row["not_before"] = admin::rfc3339(status.not_before);
      row["not_after"] = admin::rfc3339(status.not_after);
      row["next_renewal"] = admin::rfc3339(status.next_attempt);
      row["expires_in_s"] = std::chrono::duration_cast<seconds>(status.not_after - clock.wall()).count();
    }
    rows.push_back(std::move(row));
  }
  return rows;
}

json listener_rows(const proxy::Control& control) {
  static constexpr const char* kKinds[] = {"outbound", "inbound", "hbone"};
  json rows = json::array();
  for (const auto& row : control.listeners()) {
    rows.push_back({{"workload", row.name},
                    {"namespace", row.ns},
                    {"kind", kKinds[row.kind]},
                    {"address", "[::]:" + std::to_string(row.port)},
                    {"state", "listening"}});
  }
  return rows;
}

// How far what is in force can be trusted to be the last.
json config_object(const proxy::Control& control) {
  const kube::Source& source = *control.source();
  json config = {{"source", kube::origin_name(source.origin())}, {"troubles", source.troubles()}};
  if (auto age = source.age()) config["contact_age_s"] = std::chrono::duration_cast<seconds>(*age).count();
  if (auto problem = source.snapshot_problem(); !problem.empty()) config["snapshot_problem"] = problem;
  if (auto problem = control.slices_problem(); !problem.empty()) config["slices_problem"] = problem;
  return config;
}

json status_object(proxy::Control& control, const std::string& node, Monotonic::time_point started,
                   const Clock& clock) {
  auto since = [&](Monotonic::time_point then) {
    return std::chrono::duration_cast<seconds>(clock.now() - then).count();
  };
  json rejected = json::array();
  for (const auto& status : control.statuses()) {
    for (const auto& problem : status.problems) {
      if (problem.severity != kube::Severity::error) continue;
      rejected.push_back({{"kind", status.kind},
                          {"namespace", status.ns},
                          {"name", status.name},
                          {"origin", fmt::format("{}:{}", problem.file, problem.line)},
                          {"field", problem.field},
                          {"message", problem.message},
                          {"fix", problem.fix}});
    }
  }
  auto reasons = control.not_ready();
  return {{"node", node},
          {"config", config_object(control)},
          {"ready", reasons.empty()},
          {"reasons", reasons},
          {"generation", control.snapshot()->generation()},
          {"workloads", control.snapshot()->workloads().size()},
          {"services", control.snapshot()->services().size()},
          {"config_age_s", since(control.translated())},
          {"rejected", rejected},
          {"warden", {{"connected", control.warden_connected()}}},
          {"workers", control.workers().size()},
          {"uptime_s", since(started)},
          {"pid", ::getpid()}};
}

struct Gathering {
  std::mutex mutex;
  json rows = json::array();
  size_t left = 0;
  admin::Reply reply;
};

void gather_connections(proxy::Control& control, const Clock& clock, admin::Reply reply) {
  auto gathering = std::make_shared<Gathering>();
  gathering->left = control.workers().size();
  gathering->reply = std::move(reply);
  for (auto& worker : control.workers()) {
    worker->post([&of = *worker, &clock, gathering] {
      json mine = json::array();
      of.recorder.for_each_open(
          [&](telemetry::Record& record) { mine.push_back(admin::connection_row(record, clock.now())); });
      std::lock_guard lock(gathering->mutex);
      for (auto& row : mine) gathering->rows.push_back(std::move(row));
      if (--gathering->left == 0) gathering->reply(std::move(gathering->rows));
    });
  }
}

}  // namespace

admin::Sources proxy_sources(proxy::Control& control, const std::string& node, const std::string& version,
                             const telemetry::Metrics& metrics, const telemetry::Denials& denials,
                             const Clock& clock) {
  auto on_control = [&control](auto make) -> admin::Source {
    return [&control, make](admin::Reply reply) {
      control.post([make, reply = std::move(reply)]() mutable { reply(make()); });
    };
  };
  admin::Sources sources;
  sources.node = node;
  sources.version = version;
  sources.workloads = on_control([&control, node] { return workload_rows(control, node); });
  sources.services = on_control([&control] { return service_rows(control); });
  sources.policies = on_control([&control] { return policy_rows(control); });
  sources.certs = on_control([&control, &clock] { return cert_rows(control, clock); });
  sources.listeners = on_control([&control] { return listener_rows(control); });
  sources.status = on_control([&control, node, started = clock.now(), &clock] {
    return status_object(control, node, started, clock);
  });
  sources.config_dump = on_control([&control] {
    return json{{"snapshot", translate::to_json(*control.snapshot())},
                {"objects", translate::to_json(control.statuses())}};
  });
  sources.connections = [&control, &clock](admin::Reply reply) {
    control.post([&control, &clock, reply = std::move(reply)]() mutable {
      gather_connections(control, clock, std::move(reply));
    });
  };
  sources.denials = &denials;
  // The admin thread may wait for the control thread, never the other way round; one that does not answer is
  // a reason.
  sources.not_ready = [&control]() -> std::vector<std::string> {
    auto answer = std::make_shared<std::promise<std::vector<std::string>>>();
    auto future = answer->get_future();
    control.post([&control, answer] { answer->set_value(control.not_ready()); });
    if (future.wait_for(seconds(1)) != std::future_status::ready)
      return {"the control thread does not answer"};
    return future.get();
  };
  sources.metrics = [&metrics] { return metrics.render(); };
  return sources;
}

}  // namespace nodemesh::app

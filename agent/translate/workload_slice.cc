#include "translate/workload_slice.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <nlohmann/json.hpp>
#include <set>

namespace nodemesh::translate {
namespace {

using kube::Fields;
using kube::Node;
using kube::Problems;
using kube::Severity;
using nlohmann::json;

constexpr size_t kMaxUid = 128;

model::Shared<WorkloadSliceSpec::Template> read_template(const Node& node, const Fields& spec) {
  Fields fields(&node, spec);
  WorkloadSliceSpec::Template out;
  out.ns = fields.text("namespace").value_or("");
  out.service_account = fields.text("serviceAccount").value_or("default");
  if (!kube::is_dns_label(out.ns)) {
    fields.error("namespace", "is not the name of a namespace", "write the pods' namespace");
  }
  if (!kube::is_dns_subdomain(out.service_account)) {
    fields.error("serviceAccount", "is not a valid name", "write the pods' service account");
  }
  out.labels = fields.text_map("labels");
  Fields owner(fields.map("owner"), fields);
  out.owner_type = owner.text("type").value_or("pod");
  out.owner_name = owner.text("name").value_or("");
  out.protocols = fields.texts("protocols");
  return fields.share(std::move(out));
}

void read_ips(Fields& fields, WorkloadSliceSpec::Pod& pod, Problems& problems) {
  auto items = fields.list("ips");
  if (items.empty() || items.size() > kAddressesPerPod) {
    fields.error("ips", "must hold 1 to " + std::to_string(kAddressesPerPod) + " addresses",
                 "write the addresses of status.podIPs");
  }
  for (const auto& item : items) {
    auto address = Addr::parse(item.text);
    if (!address || address->is_loopback() || address->is_unspecified()) {
      report(problems, Severity::error, item, "\"" + item.text + "\" cannot be the address of a pod",
             "write the pod's own IPv4 or IPv6 address");
    } else {
      pod.addresses.push_back(*address);
    }
  }
}

WorkloadSliceSpec::Pod read_pod_entry(const Node& node, size_t templates, Problems& problems) {
  static constexpr std::array<std::pair<std::string_view, bool>, 2> kStates{
      {{"mesh", true}, {"none", false}}};
  Fields fields(&node, problems);
  WorkloadSliceSpec::Pod pod;
  pod.uid = fields.text("uid").value_or("");
  pod.name = fields.text("name").value_or("");
  if (pod.uid.empty() || pod.uid.size() > kMaxUid)
    fields.error("uid", "must be 1 to " + std::to_string(kMaxUid) + " characters", "write the Pod's uid");
  if (!kube::is_dns_subdomain(pod.name)) fields.error("name", "is not a valid name", "write the Pod's name");
  read_ips(fields, pod, problems);
  auto index = fields.integer("template", 0, kPodsPerSlice - 1);
  if (!index || static_cast<size_t>(*index) >= templates) {
    fields.error("template", "is not the number of one of spec.templates", "count from 0");
  } else {
    pod.template_index = static_cast<size_t>(*index);
  }
  auto state = fields.one_of<bool>("state", kStates);
  if (!node.find("state")) fields.missing("state", "write mesh or none");
  pod.mesh = state.value_or(true);
  return pod;
}

void check_name(const kube::Object& object, Fields& spec, const std::string& node) {
  if (!node.empty() && slice_number(node, object.key.name)) return;
  spec.error("node", "the slice \"" + object.key.name + "\" is not one of node \"" + node + "\"",
             "only <node>-<number> may hold a node's pods");
}

}  // namespace

std::string slice_name(std::string_view node, uint32_t number) {
  return std::string(node) + "-" + std::to_string(number);
}

std::optional<uint32_t> slice_number(std::string_view node, std::string_view name) {
  if (!name.starts_with(node) || name.size() < node.size() + 2 || name[node.size()] != '-')
    return std::nullopt;
  auto digits = name.substr(node.size() + 1);
  uint32_t number = 0;
  auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), number);
  bool plain = digits.size() <= 5 && (digits[0] != '0' || digits.size() == 1);
  if (error != std::errc() || end != digits.data() + digits.size() || !plain) return std::nullopt;
  return number;
}

std::shared_ptr<const kube::Decoded> read_workload_slice(const kube::Object& object, Fields& fields,
                                                         Problems& problems) {
  auto slice = std::make_shared<WorkloadSliceSpec>();
  Fields spec(fields.map("spec"), fields);
  if (!spec) fields.missing("spec", "write the slice's node, templates and pods");
  slice->node = spec.shared_text("node");
  slice->complete = spec.boolean("complete").value_or(false);
  check_name(object, spec, slice->node);
  auto templates = spec.maps("templates"), pods = spec.maps("pods");
  if (templates.size() > kPodsPerSlice || pods.size() > kPodsPerSlice) {
    spec.error("pods", "a slice holds at most " + std::to_string(kPodsPerSlice) + " pods and templates",
               "spread the pods over more slices");
    return slice;
  }
  slice->templates.reserve(templates.size());
  slice->pods.reserve(pods.size());
  for (const auto& item : templates) slice->templates.push_back(read_template(item, spec));
  std::set<std::string> uids;
  for (const auto& item : pods) {
    slice->pods.push_back(read_pod_entry(item, templates.size(), problems));
    if (uids.insert(slice->pods.back().uid).second) continue;
    report(problems, Severity::error, item, "another pod of this slice has the same uid", "name each once");
  }
  return slice;
}

std::string slice_json(const WorkloadSliceSpec& slice, uint32_t number, std::string_view node_uid,
                       std::string_view resource_version) {
  json metadata = {{"name", slice_name(slice.node, number)}};
  if (!resource_version.empty()) metadata["resourceVersion"] = resource_version;
  if (!node_uid.empty()) {
    metadata["ownerReferences"] = {
        {{"apiVersion", "v1"}, {"kind", "Node"}, {"name", slice.node}, {"uid", node_uid}}};
  }
  json templates = json::array(), pods = json::array();
  for (const auto& from : slice.templates) {
    json one = {{"namespace", from->ns}, {"serviceAccount", from->service_account}};
    if (!from->labels.empty()) one["labels"] = from->labels;
    if (!from->owner_name.empty()) one["owner"] = {{"type", from->owner_type}, {"name", from->owner_name}};
    if (!from->protocols.empty()) one["protocols"] = from->protocols;
    templates.push_back(std::move(one));
  }
  for (const auto& pod : slice.pods) {
    json ips = json::array();
    for (const auto& address : pod.addresses) ips.push_back(address.to_string());
    pods.push_back({{"uid", pod.uid},
                    {"name", pod.name},
                    {"ips", std::move(ips)},
                    {"template", pod.template_index},
                    {"state", pod.mesh ? "mesh" : "none"}});
  }
  json spec = {{"node", slice.node}, {"templates", std::move(templates)}, {"pods", std::move(pods)}};
  if (slice.complete) spec["complete"] = true;
  // Labels come from the API server, which has checked that they are UTF-8; what is not must not end us.
  return json({{"apiVersion", "nodemesh.dev/v1alpha1"},
               {"kind", "WorkloadSlice"},
               {"metadata", std::move(metadata)},
               {"spec", std::move(spec)}})
      .dump(-1, ' ', false, json::error_handler_t::replace);
}

}  // namespace nodemesh::translate

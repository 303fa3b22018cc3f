// Reads Pod and Node; see core.h.
#include <algorithm>

#include "translate/core.h"

namespace nodemesh::translate {
namespace {

using kube::Fields;
using kube::Node;
using kube::Problems;
using kube::Severity;

std::optional<Addr> read_address(const Node& node, Problems& problems) {
  auto address = Addr::parse(node.text);
  if (!address) {
    report(problems, Severity::error, node, "\"" + node.text + "\" is not an IP address",
           "write an IPv4 or IPv6 address");
  } else if (address->is_loopback() || address->is_unspecified()) {
    report(problems, Severity::error, node, node.text + " cannot be the address of a pod",
           "write the pod's own address");
    return std::nullopt;
  }
  return address;
}

void read_ips(Fields& status, PodSpec& pod, Problems& problems) {
  for (const auto& item : status.maps("podIPs")) {
    Fields fields(&item, problems);
    const Node* ip = fields.any("ip");
    auto address = ip ? read_address(*ip, problems) : std::nullopt;
    if (address && std::ranges::find(pod.addresses, *address) == pod.addresses.end())
      pod.addresses.push_back(*address);
  }
  const Node* single = status.any("podIP");
  if (!single || !pod.addresses.empty()) return;
  if (auto address = read_address(*single, problems)) pod.addresses.push_back(*address);
}

void read_container_ports(Fields& container, PodSpec& pod, Problems& problems) {
  for (const auto& item : container.maps("ports")) {
    Fields port(&item, problems);
    auto number = port.integer("containerPort", 1, 65535);
    auto name = port.text("name");
    auto protocol = port.text("protocol").value_or("TCP");
    port.ignore({"hostPort", "hostIP"});
    if (number && name && protocol == "TCP") pod.named_ports[*name] = static_cast<uint16_t>(*number);
  }
}

// `handler` is a probe or a lifecycle hook. Its port is a number or the name of a container port.
void read_handler_port(const Node* handler, PodSpec& pod, Problems& problems) {
  if (!handler) return;
  for (auto kind : {"httpGet", "tcpSocket", "grpc"}) {
    const Node* action = handler->find(kind);
    const Node* port = action ? action->find("port") : nullptr;
    if (!port) continue;
    uint16_t number = 0;
    if (port->type == Node::Type::integer) {
      Fields fields(action, problems);
      number = static_cast<uint16_t>(fields.integer("port", 1, 65535).value_or(0));
      fields.ignore({"path", "host", "scheme", "httpHeaders", "service"});
    } else if (auto named = pod.named_ports.find(port->text); named != pod.named_ports.end()) {
      number = named->second;
    } else {
      report(problems, Severity::warning, *port, "no TCP container port is named \"" + port->text + "\"",
             "name one of the container's ports so, or write its number");
    }
    if (number) pod.probe_ports.push_back(number);
  }
}

void read_container(const Node& node, PodSpec& pod, Problems& problems) {
  Fields container(&node, problems);
  read_container_ports(container, pod, problems);
  for (auto probe : {"livenessProbe", "readinessProbe", "startupProbe"}) {
    read_handler_port(container.map(probe), pod, problems);
  }
  if (const Node* lifecycle = container.map("lifecycle")) {
    read_handler_port(lifecycle->find("postStart"), pod, problems);
    read_handler_port(lifecycle->find("preStop"), pod, problems);
  }
  container.ignore({"name",
                    "image",
                    "command",
                    "args",
                    "workingDir",
                    "env",
                    "envFrom",
                    "resources",
                    "resizePolicy",
                    "restartPolicy",
                    "volumeMounts",
                    "volumeDevices",
                    "terminationMessagePath",
                    "terminationMessagePolicy",
                    "imagePullPolicy",
                    "securityContext",
                    "stdin",
                    "stdinOnce",
                    "tty",
                    "restartPolicyRules"});
}

void read_pod_spec(Fields& spec, PodSpec& pod, Problems& problems) {
  pod.node = spec.text("nodeName").value_or("");
  pod.host_network = spec.boolean("hostNetwork").value_or(false);
  pod.runtime_class = spec.text("runtimeClassName").value_or("");
  auto account = spec.text("serviceAccountName");
  auto old_name = spec.text("serviceAccount");
  if (!account) account = old_name;
  if (account && !account->empty()) pod.service_account = *account;
  if (!kube::is_dns_subdomain(pod.service_account)) {
    spec.error("serviceAccountName", "is not a valid name", "use lower-case letters, digits, '-' and '.'");
  }
  for (const auto& item : spec.maps("initContainers")) read_container(item, pod, problems);
  for (const auto& item : spec.maps("containers")) read_container(item, pod, problems);
  std::ranges::sort(pod.probe_ports);
  pod.probe_ports.erase(std::unique(pod.probe_ports.begin(), pod.probe_ports.end()), pod.probe_ports.end());
  spec.ignore({"volumes",
               "ephemeralContainers",
               "restartPolicy",
               "terminationGracePeriodSeconds",
               "activeDeadlineSeconds",
               "dnsPolicy",
               "nodeSelector",
               "automountServiceAccountToken",
               "hostPID",
               "hostIPC",
               "shareProcessNamespace",
               "securityContext",
               "imagePullSecrets",
               "hostname",
               "subdomain",
               "affinity",
               "schedulerName",
               "tolerations",
               "hostAliases",
               "priorityClassName",
               "priority",
               "dnsConfig",
               "readinessGates",
               "enableServiceLinks",
               "preemptionPolicy",
               "overhead",
               "topologySpreadConstraints",
               "setHostnameAsFQDN",
               "os",
               "hostUsers",
               "schedulingGates",
               "resourceClaims",
               "resources",
               "hostnameOverride"});
}

void read_netns(const kube::Object& object, PodSpec& pod, Problems& problems) {
  pod.netns = object.annotation("nodemesh.dev/netns");
  bool control = std::ranges::any_of(pod.netns, [](unsigned char c) { return c < 0x20; });
  if (pod.netns.empty() ||
      (pod.netns.starts_with('/') && pod.netns.find("/../") == std::string::npos && !control))
    return;
  const Node* node = object.root.find("metadata")->find("annotations")->find("nodemesh.dev/netns");
  report(problems, Severity::error, *node, "must be an absolute path without \"..\"",
         "write the path of the pod's network namespace, for example /run/netns/web");
}

void add_range(const Node& item, std::vector<Cidr>& ranges, Problems& problems) {
  auto cidr = Cidr::parse(item.text);
  if (!cidr) {
    return report(problems, Severity::error, item, "\"" + item.text + "\" is not a CIDR range",
                  "write an address and a prefix length, for example 10.244.1.0/24");
  }
  if (std::ranges::find(ranges, *cidr) == ranges.end()) ranges.push_back(*cidr);
}

// The status has much that is of no use here, and names beside addresses.
void read_node_addresses(const Node* status, NodeSpec& node) {
  const Node* list = status ? status->find("addresses") : nullptr;
  if (!list) return;
  for (const auto& item : list->children) {
    const Node* text = item.find("address");
    auto address = text ? Addr::parse(text->text) : std::nullopt;
    if (address) node.addresses.push_back(*address);
  }
}

std::vector<std::string> make_pod_fields() {
  std::vector<std::string> fields = {
      "spec.nodeName",       "spec.hostNetwork", "spec.runtimeClassName", "spec.serviceAccountName",
      "spec.serviceAccount", "status.podIP",     "status.podIPs",         "status.phase"};
  for (std::string list : {"spec.containers", "spec.initContainers"}) {
    fields.push_back(list + ".ports");
    for (std::string handler : {".livenessProbe", ".readinessProbe", ".startupProbe", ".lifecycle.postStart",
                                ".lifecycle.preStop"}) {
      for (const char* action : {".httpGet.port", ".tcpSocket.port", ".grpc.port"})
        fields.push_back(list + handler + action);
    }
  }
  return fields;
}

}  // namespace

std::span<const std::string_view> pod_fields() {
  static const std::vector<std::string> kTexts = make_pod_fields();
  static const std::vector<std::string_view> kFields(kTexts.begin(), kTexts.end());
  return kFields;
}

std::span<const std::string_view> node_fields() {
  static constexpr std::string_view kFields[] = {"spec.podCIDR", "spec.podCIDRs", "status.addresses"};
  return kFields;
}

std::shared_ptr<const kube::Decoded> read_pod(const kube::Object& object, Fields& fields,
                                              Problems& problems) {
  auto pod = std::make_shared<PodSpec>();
  Fields spec(fields.map("spec"), problems);
  if (!spec) fields.missing("spec", "write the Pod's spec, with nodeName and containers");
  read_pod_spec(spec, *pod, problems);
  Fields status(fields.map("status"), problems);
  read_ips(status, *pod, problems);
  auto phase = status.text("phase").value_or("Running");
  pod->finished = phase == "Succeeded" || phase == "Failed";
  status.ignore({"conditions", "message", "reason", "hostIP", "hostIPs", "startTime", "initContainerStatuses",
                 "containerStatuses", "qosClass", "ephemeralContainerStatuses", "nominatedNodeName", "resize",
                 "resourceClaimStatuses", "observedGeneration"});
  read_netns(object, *pod, problems);
  return pod;
}

std::shared_ptr<const kube::Decoded> read_node(const kube::Object&, Fields& fields, Problems& problems) {
  auto node = std::make_shared<NodeSpec>();
  Fields spec(fields.map("spec"), problems);
  for (const auto& item : spec.list("podCIDRs")) add_range(item, node->pod_cidrs, problems);
  if (const Node* single = spec.any("podCIDR")) add_range(*single, node->pod_cidrs, problems);
  spec.ignore({"providerID", "unschedulable", "taints", "configSource", "externalID"});
  read_node_addresses(fields.map("status"), *node);
  return node;
}

std::shared_ptr<const kube::Decoded> read_service_cidr(const kube::Object&, Fields& fields,
                                                       Problems& problems) {
  auto ranges = std::make_shared<ServiceCidrSpec>();
  Fields spec(fields.map("spec"), problems);
  for (const auto& item : spec.list("cidrs")) add_range(item, ranges->cidrs, problems);
  fields.ignore({"status"});
  return ranges;
}

std::shared_ptr<const kube::Decoded> read_runtime_class(const kube::Object&, Fields& fields, Problems&) {
  auto runtime = std::make_shared<RuntimeClassSpec>();
  runtime->handler = fields.text("handler").value_or("");
  fields.ignore({"overhead", "scheduling"});
  return runtime;
}

std::shared_ptr<const kube::Decoded> read_nothing_used(const kube::Object&, Fields& fields, Problems&) {
  // Namespace and ServiceAccount: their metadata is all that counts.
  fields.ignore({"spec", "status", "secrets", "imagePullSecrets", "automountServiceAccountToken"});
  return std::make_shared<kube::Decoded>();
}

}  // namespace nodemesh::translate

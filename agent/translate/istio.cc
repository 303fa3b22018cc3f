#include "translate/istio.h"

#include <algorithm>
#include <array>
#include <charconv>

#include "kube/yaml.h"

namespace nodemesh::translate {
namespace {

using kube::Fields;
using kube::Node;
using kube::Problems;
using kube::Severity;
using model::LbPolicy;
using model::MtlsMode;

std::optional<MtlsMode> read_mode(Fields& mtls) {
  using Mode = std::optional<MtlsMode>;
  static constexpr std::array<std::pair<std::string_view, Mode>, 4> kModes{
      {{"UNSET", std::nullopt},
       {"DISABLE", MtlsMode::disable},
       {"PERMISSIVE", MtlsMode::permissive},
       {"STRICT", MtlsMode::strict}}};
  return mtls.one_of<Mode>("mode", kModes).value_or(std::nullopt);
}

void read_port_modes(Fields& spec, PeerAuthenticationSpec& peer, Problems& problems) {
  const Node* ports = spec.map("portLevelMtls");
  if (!ports) return;
  if (!peer.selector || peer.selector->empty()) {
    spec.error("portLevelMtls", "needs a selector",
               "add spec.selector.matchLabels, since ports belong to workloads");
  }
  for (const auto& item : ports->children) {
    uint16_t port = 0;
    auto [end, failed] = std::from_chars(item.key.data(), item.key.data() + item.key.size(), port);
    if (failed != std::errc{} || end != item.key.data() + item.key.size() || port == 0) {
      report(problems, Severity::error, item, "\"" + item.key + "\" is not a port number",
             "write a number from 1 to 65535");
      continue;
    }
    Fields mtls(&item, problems);
    peer.ports[port] = read_mode(mtls);
  }
}

std::optional<LbPolicy> read_lb(Fields& policy, Problems& problems) {
  using enum LbPolicy;
  enum class Simple : uint8_t { unspecified, least, round_robin, random, passthrough };
  static constexpr std::array<std::pair<std::string_view, Simple>, 6> kSimple{
      {{"LEAST_REQUEST", Simple::least},
       {"ROUND_ROBIN", Simple::round_robin},
       {"RANDOM", Simple::random},
       {"LEAST_CONN", Simple::least},
       {"PASSTHROUGH", Simple::passthrough},
       {"UNSPECIFIED", Simple::unspecified}}};
  Fields balancer(policy.map("loadBalancer"), problems);
  auto simple = balancer.one_of<Simple>("simple", kSimple);
  balancer.unsupported(
      {"consistentHash", "localityLbSetting", "zoneAwareLbSetting", "warmup", "warmupDurationSecs"});
  policy.unsupported({"connectionPool", "outlierDetection", "tls", "tunnel", "proxyProtocol", "retryBudget"});
  if (simple == Simple::passthrough) {
    balancer.warn("simple", "PASSTHROUGH is not supported in this release, LEAST_REQUEST is used",
                  "use LEAST_REQUEST, ROUND_ROBIN or RANDOM");
  }
  if (simple == Simple::round_robin) return round_robin;
  if (simple == Simple::random) return random;
  return simple ? std::optional(least_request) : std::nullopt;
}

void read_port_settings(Fields& policy, DestinationRuleSpec& rule, Problems& problems) {
  for (const auto& item : policy.maps("portLevelSettings")) {
    Fields settings(&item, problems);
    Fields port(settings.map("port"), problems);
    auto number = port.integer("number", 1, 65535);
    // It replaces the destination's policy as a whole: what it leaves out is the default, not the parent's.
    auto lb = read_lb(settings, problems).value_or(LbPolicy::least_request);
    if (number) rule.port_lb[static_cast<uint16_t>(*number)] = lb;
    if (!port || !port.node()->find("number")) settings.missing("port.number", "write the Service's port");
  }
}

void read_mesh_config(const Node& text, MeshConfigSpec& mesh, Problems& problems) {
  static constexpr std::array<std::pair<std::string_view, bool>, 2> kEncodings{
      {{"TEXT", false}, {"JSON", true}}};
  // The text of a block scalar starts on the line after its '|'.
  auto documents = kube::parse_yaml(text.text, "", text.line + 1);
  Problems inner = std::move(documents.problems);
  if (!documents.roots.empty()) {
    documents.roots[0].link();
    Fields fields(&documents.roots[0], inner);
    mesh.trust_domain = fields.text("trustDomain");
    mesh.trust_domain_aliases = fields.texts("trustDomainAliases");
    mesh.root_namespace = fields.text("rootNamespace");
    mesh.access_log.file = fields.text("accessLogFile").value_or("");
    mesh.access_log.json = fields.one_of<bool>("accessLogEncoding", kEncodings).value_or(false);
    if (mesh.trust_domain && !kube::is_dns_subdomain(*mesh.trust_domain)) {
      fields.error("trustDomain", "is not a valid trust domain",
                   "use lower-case letters, digits, '-' and '.'");
    }
    if (mesh.root_namespace && !kube::is_dns_label(*mesh.root_namespace)) {
      fields.error("rootNamespace", "is not a valid namespace name",
                   "use lower-case letters, digits and '-'");
    }
    fields.ignore({"ingressService", "ingressSelector", "ingressClass", "ingressControllerMode",
                   "enableAutoMtls", "enablePrometheusMerge", "dnsRefreshRate", "proxyListenPort",
                   "proxyInboundListenPort", "proxyHttpPort", "defaultProviders", "configSources",
                   "protocolDetectionTimeout", "mixerAddress"});
    fields.unsupported({"accessLogFormat",
                        "outboundTrafficPolicy",
                        "inboundTrafficPolicy",
                        "discoverySelectors",
                        "extensionProviders",
                        "pathNormalization",
                        "defaultHttpRetryPolicy",
                        "defaultTrafficPolicy",
                        "meshMTLS",
                        "tlsDefaults",
                        "localityLbSetting",
                        "serviceScopeConfigs",
                        "hboneIdleTimeout",
                        "caCertificates",
                        "certificates",
                        "connectTimeout",
                        "tcpKeepalive",
                        "enableTracing",
                        "defaultConfig",
                        "defaultServiceExportTo",
                        "defaultVirtualServiceExportTo",
                        "defaultDestinationRuleExportTo",
                        "ca",
                        "h2UpgradePolicy",
                        "verifyCertificateAtClient"});
  }
  for (auto& problem : inner) {
    problem.field = text.path() + (problem.field.empty() ? "" : ": " + problem.field);
    problems.push_back(std::move(problem));
  }
}

}  // namespace

bool selects(const Labels& selector, const Labels& labels) {
  return std::ranges::all_of(selector, [&](const auto& wanted) {
    auto found = labels.find(wanted.first);
    return found != labels.end() && found->second == wanted.second;
  });
}

std::optional<Labels> read_selector(const Node* node, Problems& problems) {
  if (!node) return std::nullopt;
  Fields selector(node, problems);
  return selector.text_map("matchLabels");
}

std::shared_ptr<const kube::Decoded> read_peer_authentication(const kube::Object&, Fields& fields,
                                                              Problems& problems) {
  auto peer = std::make_shared<PeerAuthenticationSpec>();
  Fields spec(fields.map("spec"), problems);
  peer->selector = read_selector(spec.map("selector"), problems);
  Fields mtls(spec.map("mtls"), problems);
  peer->mode = read_mode(mtls);
  read_port_modes(spec, *peer, problems);
  fields.ignore({"status"});
  return peer;
}

bool DestinationRuleSpec::matches(std::string_view service_host) const {
  if (host.starts_with('*')) return service_host.ends_with(std::string_view(host).substr(1));
  return service_host == host;
}

std::shared_ptr<const kube::Decoded> read_destination_rule(const kube::Object& object, Fields& fields,
                                                           Problems& problems) {
  auto rule = std::make_shared<DestinationRuleSpec>();
  Fields spec(fields.map("spec"), problems);
  rule->host = spec.text("host").value_or("");
  if (rule->host.empty())
    spec.missing("host", "write the Service's host name, for example web.shop.svc.cluster.local");
  if (rule->host.find('.') == std::string::npos && !rule->host.starts_with('*')) {
    rule->host += "." + object.key.ns + ".svc.cluster.local";
  }
  Fields policy(spec.map("trafficPolicy"), problems);
  rule->lb = read_lb(policy, problems).value_or(LbPolicy::least_request);
  read_port_settings(policy, *rule, problems);
  spec.unsupported({"subsets", "exportTo"});
  if (spec.any("workloadSelector")) {
    rule->limited = true;
    spec.warn("workloadSelector", "not supported in this release, so the whole rule has no effect",
              "remove it");
  }
  fields.ignore({"status"});
  return rule;
}

std::shared_ptr<const kube::Decoded> read_config_map(const kube::Object& object, Fields& fields,
                                                     Problems& problems) {
  auto mesh = std::make_shared<MeshConfigSpec>();
  const Node* data = fields.map("data");
  fields.ignore({"binaryData", "immutable"});
  const Node* text = object.key.name == "istio" && data ? data->find("mesh") : nullptr;
  if (text) read_mesh_config(*text, *mesh, problems);
  return mesh;
}

}  // namespace nodemesh::translate

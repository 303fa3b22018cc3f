#include "translate/istio_authz.h"

#include <algorithm>
#include <array>
#include <charconv>

namespace nodemesh::translate {
namespace {

using kube::Fields;
using kube::Node;
using kube::Problems;
using kube::Severity;
using model::Action;
using model::Alternative;
using model::Attribute;
using model::Clause;
using model::Condition;
using model::Rule;
using model::StringMatch;

std::string upper_first(std::string text) {
  text[0] = static_cast<char>(std::toupper(static_cast<unsigned char>(text[0])));
  return text;
}

// Compiles the rules of one policy.
class Compiler {
 public:
  Compiler(const kube::Object& object, Action action, Problems& problems)
      : ns_(object.key.ns), action_(action), problems_(problems) {}

  std::vector<Rule> rules(std::span<const Node> items) {
    std::vector<Rule> compiled;
    for (size_t i = 0; i < items.size(); ++i) {
      Rule rule{.index = static_cast<uint32_t>(i)};
      bool http = compile(items[i], rule);
      if (!http || action_ != Action::allow) compiled.push_back(std::move(rule));
      if (http) say_fate(items[i], compiled.empty() ? nullptr : &compiled.back());
    }
    return compiled;
  }

 private:
  // Returns whether the rule has fields that need HTTP.
  bool compile(const Node& item, Rule& rule) {
    http_field_.clear();
    Fields fields(&item, problems_);
    Clause from, to;
    for (const auto& entry : fields.maps("from")) {
      Fields source_entry(&entry, problems_);
      from.alternatives.push_back(source(source_entry));
    }
    for (const auto& entry : fields.maps("to")) {
      Fields operation_entry(&entry, problems_);
      to.alternatives.push_back(operation(operation_entry));
    }
    if (!from.alternatives.empty()) rule.clauses.push_back(std::move(from));
    if (!to.alternatives.empty()) rule.clauses.push_back(std::move(to));
    for (const auto& entry : fields.maps("when")) when(entry, rule);
    // CUSTOM cannot be evaluated at all, so what is left out of it must not make it match less.
    rule.lost_http_fields = !http_field_.empty() && action_ == Action::deny;
    return !http_field_.empty();
  }

  Alternative source(Fields& entry) {
    Fields source(entry.map("source"), problems_);
    if (!source || source.node()->children.empty()) {
      entry.error("source", "must not be empty",
                  "name what the source must be, or remove the whole \"from\"");
      return {};
    }
    Alternative out;
    pair(source, "principals", Attribute::source_principal, out);
    pair(source, "namespaces", Attribute::source_namespace, out);
    pair(source, "serviceAccounts", Attribute::source_service_account, out);
    pair(source, "trustDomains", Attribute::source_trust_domain, out);
    pair(source, "ipBlocks", Attribute::source_ip, out);
    pair(source, "remoteIpBlocks", Attribute::remote_ip, out);
    http(source, {"requestPrincipals"});
    const Node& node = *source.node();
    bool accounts = node.find("serviceAccounts") || node.find("notServiceAccounts");
    if (accounts && (node.find("principals") || node.find("namespaces") || node.find("notPrincipals") ||
                     node.find("notNamespaces"))) {
      source.error("serviceAccounts", "cannot be used together with principals or namespaces",
                   "use one of them");
    }
    return out;
  }

  Alternative operation(Fields& entry) {
    Fields operation(entry.map("operation"), problems_);
    if (!operation || operation.node()->children.empty()) {
      entry.error("operation", "must not be empty",
                  "name what the operation must be, or remove the whole \"to\"");
      return {};
    }
    Alternative out;
    pair(operation, "ports", Attribute::destination_port, out);
    http(operation, {"hosts", "methods", "paths"});
    return out;
  }

  void when(const Node& item, Rule& rule) {
    static constexpr std::pair<std::string_view, Attribute> kKeys[] = {
        {"source.ip", Attribute::source_ip},
        {"remote.ip", Attribute::remote_ip},
        {"source.namespace", Attribute::source_namespace},
        {"source.principal", Attribute::source_principal},
        {"source.serviceAccount", Attribute::source_service_account},
        {"source.trustDomain", Attribute::source_trust_domain},
        {"destination.ip", Attribute::destination_ip},
        {"destination.port", Attribute::destination_port}};
    Fields fields(&item, problems_);
    auto key = fields.text("key").value_or("");
    auto found = std::ranges::find(kKeys, key, &std::pair<std::string_view, Attribute>::first);
    if (!item.find("values") && !item.find("notValues")) {
      fields.error("values", "is required but missing", "write values or notValues");
    }
    if (found != std::end(kKeys)) {
      Alternative out;
      for (bool negated : {false, true})
        values(fields, negated ? "notValues" : "values", found->second, negated, out);
      rule.clauses.push_back({{std::move(out)}});
      return;
    }
    fields.ignore({"values", "notValues"});
    if (key.starts_with("request.") || key == "connection.sni" ||
        key.starts_with("experimental.envoy.filters.")) {
      if (http_field_.empty()) http_field_ = key;
      return;
    }
    fields.error(
        "key", "unknown attribute \"" + key + "\"",
        "use one of source.ip, remote.ip, source.namespace, source.principal, source.serviceAccount, "
        "source.trustDomain, destination.ip, destination.port, connection.sni, request.*");
  }

  void pair(Fields& fields, const std::string& name, Attribute attribute, Alternative& out) {
    values(fields, name, attribute, false, out);
    values(fields, "not" + upper_first(name), attribute, true, out);
  }

  void http(Fields& fields, std::initializer_list<std::string> names) {
    for (const auto& name : names) {
      for (const auto& key : {name, "not" + upper_first(name)}) {
        if (!fields.list(key).empty() && http_field_.empty()) http_field_ = key;
      }
    }
  }

  void values(Fields& fields, const std::string& key, Attribute attribute, bool negated, Alternative& out) {
    auto items = fields.list(key);
    fields.texts(key);  // reports wrong types
    if (items.empty()) {
      const Node* written = fields.node() ? fields.node()->find(key) : nullptr;
      if (written && written->type == Node::Type::list)
        error(*written, "an empty list would match everything", "remove it, or fill it");
      return;
    }
    Condition condition{.attribute = attribute, .negated = negated};
    for (const auto& item : items) value(item, attribute, condition);
    out.conditions.push_back(std::move(condition));
  }

  void value(const Node& item, Attribute attribute, Condition& condition) {
    switch (attribute) {
      case Attribute::source_ip:
      case Attribute::remote_ip:
      case Attribute::destination_ip:
        return cidr(item, condition);
      case Attribute::destination_port:
        return port(item, condition);
      case Attribute::source_service_account:
        return account(item, condition);
      default:
        break;
    }
    if (item.text.empty()) return error(item, "must not be empty", "remove it");
    if (item.text != "*" &&
        (std::ranges::count(item.text, '*') > 1 || item.text.find('*', 1) < item.text.size() - 1)) {
      return error(item, "\"*\" may stand only at the start or at the end",
                   "write exact, prefix* or *suffix");
    }
    if (item.text.starts_with("spiffe://")) {
      return error(item, "a principal is written without \"spiffe://\"", "write " + item.text.substr(9));
    }
    condition.strings.push_back(StringMatch::parse(item.text));
  }

  void cidr(const Node& item, Condition& condition) {
    auto parsed = Cidr::parse(item.text);
    if (!parsed)
      return error(item, "\"" + item.text + "\" is not an address or CIDR range",
                   "write for example 10.0.0.0/8 or fd00::/64");
    condition.cidrs.push_back(*parsed);
  }

  void port(const Node& item, Condition& condition) {
    uint16_t number = 0;
    auto [end, failed] = std::from_chars(item.text.data(), item.text.data() + item.text.size(), number);
    if (failed != std::errc{} || end != item.text.data() + item.text.size() || number == 0) {
      return error(item, "\"" + item.text + "\" is not a port", "write a number from 1 to 65535, in quotes");
    }
    condition.ports.push_back(number);
  }

  void account(const Node& item, Condition& condition) {
    auto slash = item.text.find('/');
    auto ns = slash == std::string::npos ? ns_ : item.text.substr(0, slash);
    auto name = slash == std::string::npos ? item.text : item.text.substr(slash + 1);
    if (!kube::is_dns_label(ns) || !kube::is_dns_subdomain(name)) {
      return error(item, "\"" + item.text + "\" is not a service account",
                   "write \"name\" or \"namespace/name\", without \"*\"");
    }
    condition.strings.push_back({StringMatch::Kind::exact, ns + "/sa/" + name});
  }

  void error(const Node& item, std::string message, std::string fix) {
    report(problems_, Severity::error, item, std::move(message), std::move(fix));
  }

  void say_fate(const Node& item, const Rule* rule) {
    std::string field = "the field " + http_field_ + " needs HTTP, which is not parsed in this release: ";
    std::string fate;
    if (action_ == Action::allow) {
      fate = "the whole rule is dropped and allows nothing";
    } else if (action_ == Action::custom) {
      fate = "the rule matches whatever its other fields match";
    } else {
      bool rest = rule && std::ranges::any_of(rule->clauses, [](const Clause& clause) {
                    return std::ranges::any_of(clause.alternatives,
                                               [](const Alternative& a) { return !a.conditions.empty(); });
                  });
      fate = rest ? "it is ignored, so the rule denies more than it says"
                  : "it is ignored, and the rule denies nothing";
    }
    report(problems_, Severity::warning, item, field + fate,
           "use fields that hold for TCP: principals, namespaces, ipBlocks, ports");
  }

  std::string ns_;
  Action action_;
  Problems& problems_;
  std::string http_field_;  // the first one seen in the current rule
};

void read_target(const Node& item, AuthorizationPolicySpec& spec, Problems& problems) {
  Fields target(&item, problems);
  auto kind = target.text("kind").value_or("");
  auto name = target.text("name").value_or("");
  auto group = target.text("group").value_or("");
  if (kind.empty()) target.missing("kind", "write \"kind: Service\"");
  if (name.empty()) target.missing("name", "write the Service's name");
  if (target.text("namespace"))
    target.error("namespace", "a target is always in the policy's own namespace", "remove it");
  if (kind == "Service" && (group.empty() || group == "core")) {
    spec.targets.push_back({name, item.line, item.column, item.path()});
  } else if (!kind.empty()) {
    target.warn(
        "kind",
        "targets of kind " + kind + " are not supported in this release; the policy has no effect on it",
        "use a selector or a target of kind Service");
  }
}

void read_action(Fields& fields, AuthorizationPolicySpec& spec, Problems& problems) {
  enum class Written : uint8_t { allow, deny, audit, custom };
  static constexpr std::array<std::pair<std::string_view, Written>, 4> kActions{
      {{"ALLOW", Written::allow},
       {"DENY", Written::deny},
       {"AUDIT", Written::audit},
       {"CUSTOM", Written::custom}}};
  auto action = fields.one_of<Written>("action", kActions).value_or(Written::allow);
  Fields provider(fields.map("provider"), problems);
  auto name = provider.text("name");
  spec.audit = action == Written::audit;
  spec.policy.action = action == Written::deny     ? Action::deny
                       : action == Written::custom ? Action::custom
                                                   : Action::allow;
  if (spec.audit)
    fields.warn("action", "AUDIT decides nothing and is not recorded in this release",
                "use the annotation istio.io/dry-run");
  if (action != Written::custom) return;
  if (!name) fields.missing("provider.name", "name the extension provider");
  fields.warn("action", "CUSTOM cannot be evaluated in this release, so what its rules match is denied",
              "use ALLOW or DENY, or remove the policy");
}

}  // namespace

std::shared_ptr<const kube::Decoded> read_authorization_policy(const kube::Object& object, Fields& fields,
                                                               Problems& problems) {
  auto spec = std::make_shared<AuthorizationPolicySpec>();
  Fields body(fields.map("spec"), problems);
  fields.ignore({"status"});
  spec->selector = read_selector(body.map("selector"), problems);
  auto targets = body.maps("targetRefs");
  for (const auto& item : targets) read_target(item, *spec, problems);
  const Node* target = body.map("targetRef");
  if (target) read_target(*target, *spec, problems);
  spec->has_targets = target || !targets.empty();
  if (spec->has_targets && spec->selector) {
    body.error("targetRefs", "cannot be used together with selector", "remove one of the two");
  }
  read_action(body, *spec, problems);
  auto dry_run = object.annotation("istio.io/dry-run");
  spec->policy.dry_run = dry_run == "true";
  if (!dry_run.empty() && dry_run != "true" && dry_run != "false") {
    fields.error("metadata",
                 "annotation istio.io/dry-run has the unknown value \"" + std::string(dry_run) + "\"",
                 "write \"true\" or \"false\"");
  }
  spec->policy.origin = object.origin();
  spec->policy.rules = Compiler(object, spec->policy.action, problems).rules(body.maps("rules"));
  return spec;
}

void expand_trust_domains(model::Policy& policy, const std::string& trust_domain,
                          const std::vector<std::string>& aliases) {
  std::vector<std::string> ours{trust_domain};
  ours.insert(ours.end(), aliases.begin(), aliases.end());
  auto expand = [&](Condition& condition) {
    if (condition.attribute != Attribute::source_principal) return;
    for (auto match : std::vector(condition.strings)) {
      auto slash = match.text.find("/ns/");
      bool anchored = match.kind == StringMatch::Kind::exact || match.kind == StringMatch::Kind::prefix;
      if (!anchored || slash == std::string::npos) continue;
      auto written = match.text.substr(0, slash);
      if (written != "cluster.local" && std::ranges::find(ours, written) == ours.end()) continue;
      for (const auto& name : ours) {
        StringMatch alias{match.kind, name + match.text.substr(slash)};
        if (std::ranges::find(condition.strings, alias) == condition.strings.end())
          condition.strings.push_back(alias);
      }
    }
  };
  for (auto& rule : policy.rules) {
    for (auto& clause : rule.clauses) {
      for (auto& alternative : clause.alternatives) std::ranges::for_each(alternative.conditions, expand);
    }
  }
}

}  // namespace nodemesh::translate

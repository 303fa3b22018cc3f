#include "model/authorize.h"

#include <algorithm>

namespace nodemesh::model {
namespace {

constexpr std::string_view kScheme = "spiffe://";

// The identity attribute of the peer, or an empty view.
std::string_view identity_part(Attribute attribute, const PeerIdentity& id) {
  switch (attribute) {
    case Attribute::source_principal:
      return id.principal;
    case Attribute::source_trust_domain:
      return id.trust_domain;
    case Attribute::source_namespace:
      return id.ns;
    case Attribute::source_service_account:
      return id.ns_and_account();
    default:
      return {};
  }
}

bool any_value_matches(const Condition& condition, const PeerFacts& facts) {
  auto contains = [&](const Addr& ip) {
    return std::ranges::any_of(condition.cidrs, [&](const Cidr& cidr) { return cidr.contains(ip); });
  };
  switch (condition.attribute) {
    case Attribute::source_ip:
    case Attribute::remote_ip:
      return contains(facts.source_ip);
    case Attribute::destination_ip:
      return contains(facts.destination_ip);
    case Attribute::destination_port:
      return std::ranges::find(condition.ports, facts.destination_port) != condition.ports.end();
    default:
      break;
  }
  if (!facts.authenticated()) return false;
  auto value = identity_part(condition.attribute, *facts.identity);
  return std::ranges::any_of(condition.strings,
                             [&](const StringMatch& match) { return match.matches(value); });
}

bool matches(const Alternative& alternative, const PeerFacts& facts) {
  return std::ranges::all_of(alternative.conditions, [&](const Condition& c) { return matches(c, facts); });
}

const Rule* first_match(const Policy& policy, const PeerFacts& facts) {
  for (const auto& rule : policy.rules) {
    if (matches(rule, facts)) return &rule;
  }
  return nullptr;
}

Verdict deny(Reason reason, const Policy& policy, const Rule* rule) {
  return {.allow = false,
          .reason = reason,
          .decided_by = &policy,
          .origin = &policy.origin,
          .rule = rule ? static_cast<int>(rule->index) : -1};
}

// Walks the policies in order. With `dry_run` as if the dry-run policies were in force too.
Verdict decide(const WorkloadPolicy& policy, const PeerFacts& facts, bool dry_run) {
  const Policy* unmatched_allow = nullptr;
  for (const auto& applied : policy.policies) {
    const auto& candidate = *applied.policy;
    if ((candidate.dry_run && !dry_run) || !applied.covers(facts.destination_port)) continue;
    const Rule* rule = first_match(candidate, facts);
    if (candidate.action == Action::allow && !rule && !unmatched_allow) unmatched_allow = &candidate;
    if (!rule) continue;
    if (candidate.action == Action::custom) return deny(Reason::POLICY_UNSUPPORTED, candidate, rule);
    if (candidate.action == Action::deny) return deny(Reason::POLICY_DENY, candidate, rule);
    return {.decided_by = &candidate, .origin = &candidate.origin, .rule = static_cast<int>(rule->index)};
  }
  if (unmatched_allow) return deny(Reason::POLICY_NO_ALLOW, *unmatched_allow, nullptr);
  return {};
}

void add_dry_run(const WorkloadPolicy& policy, const PeerFacts& facts, Verdict& verdict) {
  bool applies = false;
  for (const auto& applied : policy.policies) {
    if (!applied.policy->dry_run || !applied.covers(facts.destination_port)) continue;
    applies = true;
    if (const Rule* rule = first_match(*applied.policy, facts)) {
      verdict.dry_run.push_back({applied.policy.get(), rule->index});
    }
  }
  verdict.dry_run_denies = applies && verdict.allow && !decide(policy, facts, true).allow;
}

}  // namespace

std::string_view PeerIdentity::ns_and_account() const {
  return {ns.data(), static_cast<size_t>(service_account.data() + service_account.size() - ns.data())};
}

std::optional<PeerIdentity> PeerIdentity::parse(std::string_view uri) {
  if (!uri.starts_with(kScheme) || uri.find('\0') != uri.npos) return std::nullopt;
  PeerIdentity id{.uri = uri, .principal = uri.substr(kScheme.size())};
  auto rest = id.principal;
  std::string_view parts[5];
  for (int i = 0; i < 5; ++i) {
    auto slash = rest.find('/');
    if ((slash == rest.npos) != (i == 4)) return std::nullopt;
    parts[i] = rest.substr(0, slash);
    if (parts[i].empty()) return std::nullopt;
    rest.remove_prefix(i == 4 ? rest.size() : slash + 1);
  }
  if (parts[1] != "ns" || parts[3] != "sa") return std::nullopt;
  id.trust_domain = parts[0];
  id.ns = parts[2];
  id.service_account = parts[4];
  return id;
}

bool matches(const Condition& condition, const PeerFacts& facts) {
  return any_value_matches(condition, facts) != condition.negated;
}

bool matches(const Rule& rule, const PeerFacts& facts) {
  bool rests_on_field = false;
  for (const auto& clause : rule.clauses) {
    bool matched = false;
    for (const auto& alternative : clause.alternatives) {
      if (!matches(alternative, facts)) continue;
      matched = true;
      rests_on_field |= !alternative.conditions.empty();
    }
    if (!matched) return false;
  }
  return rests_on_field || !rule.lost_http_fields;
}

Verdict authorize(const WorkloadPolicy& policy, const PeerFacts& facts) {
  const auto& mtls = policy.mtls_at(facts.destination_port);
  if (mtls.mode == MtlsMode::strict && !facts.authenticated()) {
    return {.allow = false, .reason = Reason::STRICT_PLAINTEXT, .origin = &mtls.origin};
  }
  auto verdict = decide(policy, facts, false);
  add_dry_run(policy, facts, verdict);
  return verdict;
}

}  // namespace nodemesh::model

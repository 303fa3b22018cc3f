// The L4 decision: every field, every order of precedence, every absence.
#include <doctest/doctest.h>

#include "model/authorize.h"

using namespace nodemesh;
using namespace nodemesh::model;

namespace {

constexpr std::string_view kCurl = "spiffe://cluster.local/ns/shop/sa/curl";

PeerFacts meshed(std::string_view uri = kCurl) {
  return {.identity = PeerIdentity::parse(uri),
          .source_ip = Addr::v4(10, 244, 1, 10),
          .destination_ip = Addr::v4(10, 244, 2, 31),
          .destination_port = 5432,
          .mtls = true};
}

PeerFacts plaintext() {
  auto facts = meshed();
  facts.identity.reset();
  facts.mtls = false;
  return facts;
}

Condition strings(Attribute attribute, std::vector<std::string> patterns, bool negated = false) {
  Condition condition{.attribute = attribute, .negated = negated};
  for (const auto& pattern : patterns) condition.strings.push_back(StringMatch::parse(pattern));
  return condition;
}

Condition cidrs(Attribute attribute, std::string_view text, bool negated = false) {
  return {.attribute = attribute, .negated = negated, .cidrs = {*Cidr::parse(text)}};
}

Condition ports(std::vector<uint16_t> numbers, bool negated = false) {
  return {.attribute = Attribute::destination_port, .negated = negated, .ports = std::move(numbers)};
}

Rule rule(std::vector<Condition> conditions, uint32_t index = 0) {
  Rule out{.index = index};
  for (auto& condition : conditions) out.clauses.push_back({{Alternative{{std::move(condition)}}}});
  return out;
}

AppliedPolicy policy(Action action, std::vector<Rule> rules, bool dry_run = false,
                     std::vector<uint16_t> only = {}) {
  return {std::make_shared<const Policy>(
              Policy{{.kind = "AuthorizationPolicy", .name = "p"}, action, dry_run, std::move(rules)}),
          std::move(only)};
}

Verdict decide(std::vector<AppliedPolicy> policies, const PeerFacts& facts) {
  static WorkloadPolicy kept;  // the verdict points into it
  kept = {};
  kept.policies = std::move(policies);
  return authorize(kept, facts);
}

WorkloadPolicy strict() {
  WorkloadPolicy out;
  out.mtls = {MtlsMode::strict, {.kind = "PeerAuthentication", .name = "default"}};
  return out;
}

}  // namespace

TEST_CASE("a SPIFFE id parses only in Istio's exact form") {
  auto id = PeerIdentity::parse("spiffe://td.example/ns/shop/sa/curl");
  REQUIRE(id);
  CHECK(id->principal == "td.example/ns/shop/sa/curl");
  CHECK(id->trust_domain == "td.example");
  CHECK(id->ns == "shop");
  CHECK(id->service_account == "curl");
  CHECK(id->ns_and_account() == "shop/sa/curl");
  using namespace std::string_view_literals;
  for (auto bad : {""sv, "spiffe://"sv, "http://td/ns/a/sa/b"sv, "spiffe://td/ns/a/sa/"sv,
                   "spiffe:///ns/a/sa/b"sv, "spiffe://td/ns//sa/b"sv, "spiffe://td/ns/a/sa/b/c"sv,
                   "spiffe://td/sa/a/ns/b"sv, "spiffe://td/ns/a"sv, "spiffe://td/ns/a/sa/b\0x"sv,
                   "SPIFFE://td/ns/a/sa/b"sv, "spiffe://td/ns/a/sa/b/"sv}) {
    CHECK_FALSE(PeerIdentity::parse(bad));
  }
}

TEST_CASE("without any policy everybody is allowed") {
  CHECK(decide({}, meshed()).allow);
  CHECK(decide({}, plaintext()).allow);
}

TEST_CASE("STRICT refuses plaintext and names the PeerAuthentication") {
  auto policy = strict();
  auto verdict = authorize(policy, plaintext());
  CHECK_FALSE(verdict.allow);
  CHECK(verdict.reason == Reason::STRICT_PLAINTEXT);
  REQUIRE(verdict.origin);
  CHECK(verdict.origin->kind == "PeerAuthentication");
  CHECK(verdict.decided_by == nullptr);
  CHECK(authorize(policy, meshed()).allow);
}

TEST_CASE("a same-node peer attested by the kernel counts as authenticated") {
  auto policy = strict();
  auto facts = meshed();
  facts.mtls = false;
  facts.same_node = true;
  CHECK(authorize(policy, facts).allow);
  facts.identity.reset();
  CHECK_FALSE(authorize(policy, facts).allow);
}

TEST_CASE("an identity that nobody vouches for is treated as absent") {
  auto facts = meshed();
  facts.mtls = false;
  CHECK_FALSE(authorize(strict(), facts).allow);
  CHECK_FALSE(
      decide({policy(Action::allow, {rule({strings(Attribute::source_namespace, {"shop"})})})}, facts).allow);
}

TEST_CASE("the mode of a port overrides the workload's, and DISABLE is permissive inbound") {
  auto policy = strict();
  policy.port_mtls = {{5432, {MtlsMode::disable, {}}}, {80, {MtlsMode::permissive, {}}}};
  auto facts = plaintext();
  CHECK(authorize(policy, facts).allow);
  facts.destination_port = 80;
  CHECK(authorize(policy, facts).allow);
  facts.destination_port = 81;
  CHECK_FALSE(authorize(policy, facts).allow);
  WorkloadPolicy open;
  open.port_mtls = {{5432, {MtlsMode::strict, {}}}};
  CHECK_FALSE(authorize(open, plaintext()).allow);
}

TEST_CASE("ALLOW without rules allows nothing and DENY without rules denies nothing") {
  auto verdict = decide({policy(Action::allow, {})}, meshed());
  CHECK_FALSE(verdict.allow);
  CHECK(verdict.reason == Reason::POLICY_NO_ALLOW);
  CHECK(verdict.decided_by != nullptr);
  CHECK(verdict.rule == -1);
  CHECK(decide({policy(Action::deny, {})}, meshed()).allow);
}

TEST_CASE("an empty rule matches everything") {
  CHECK(decide({policy(Action::allow, {Rule{}})}, plaintext()).allow);
  auto verdict = decide({policy(Action::deny, {Rule{}})}, meshed());
  CHECK(verdict.reason == Reason::POLICY_DENY);
  CHECK(verdict.rule == 0);
}

TEST_CASE("DENY goes before ALLOW and CUSTOM before both") {
  auto all = [](Action action) { return policy(action, {Rule{}}); };
  CHECK(decide({all(Action::deny), all(Action::allow)}, meshed()).reason == Reason::POLICY_DENY);
  CHECK(decide({all(Action::custom), all(Action::deny), all(Action::allow)}, meshed()).reason ==
        Reason::POLICY_UNSUPPORTED);
  CHECK(decide({policy(Action::custom, {rule({ports({80})})}), all(Action::allow)}, meshed()).allow);
}

TEST_CASE("one matching ALLOW policy is enough, and the rule that matched is named") {
  auto verdict = decide(
      {policy(Action::allow, {}), policy(Action::allow, {rule({ports({80})}, 0), rule({ports({5432})}, 3)})},
      meshed());
  CHECK(verdict.allow);
  CHECK(verdict.rule == 3);
}

TEST_CASE("each attribute matches what it should, and its negation the opposite") {
  struct Case {
    Condition matching, other;
  };
  using enum Attribute;
  Case cases[] = {
      {strings(source_principal, {"cluster.local/ns/shop/sa/curl"}),
       strings(source_principal, {"cluster.local/ns/shop/sa/psql"})},
      {strings(source_trust_domain, {"cluster.*"}), strings(source_trust_domain, {"cluster"})},
      {strings(source_namespace, {"x", "shop"}), strings(source_namespace, {"sho"})},
      {strings(source_service_account, {"shop/sa/curl"}), strings(source_service_account, {"shop/curl"})},
      {cidrs(source_ip, "10.244.1.0/24"), cidrs(source_ip, "10.244.2.0/24")},
      {cidrs(remote_ip, "10.244.1.10"), cidrs(remote_ip, "fd00::/8")},
      {cidrs(destination_ip, "10.244.2.31/32"), cidrs(destination_ip, "10.244.2.30/32")},
      {ports({1, 5432}), ports({5433})},
  };
  for (auto& [matching, other] : cases) {
    INFO(attribute_name(matching.attribute));
    CHECK(matches(matching, meshed()));
    CHECK_FALSE(matches(other, meshed()));
    matching.negated = other.negated = true;
    CHECK_FALSE(matches(matching, meshed()));
    CHECK(matches(other, meshed()));
  }
}

TEST_CASE("values match exactly, by prefix, by suffix or by presence") {
  CHECK(StringMatch::parse("ab").matches("ab"));
  CHECK_FALSE(StringMatch::parse("ab").matches("abc"));
  CHECK(StringMatch::parse("ab*").matches("abc"));
  CHECK_FALSE(StringMatch::parse("ab*").matches("xab"));
  CHECK(StringMatch::parse("*ab").matches("xab"));
  CHECK_FALSE(StringMatch::parse("*ab").matches("abx"));
  CHECK(StringMatch::parse("*").matches("x"));
  CHECK_FALSE(StringMatch::parse("*").matches(""));
}

TEST_CASE("a peer without identity matches no value, so only negations hold for it") {
  for (auto attribute : {Attribute::source_principal, Attribute::source_namespace,
                         Attribute::source_service_account, Attribute::source_trust_domain}) {
    CHECK_FALSE(matches(strings(attribute, {"*"}), plaintext()));
    CHECK(matches(strings(attribute, {"*"}, true), plaintext()));
  }
}

TEST_CASE("clauses are ANDed, alternatives ORed, conditions ANDed") {
  Rule both = rule({ports({5432}), strings(Attribute::source_namespace, {"other"})});
  CHECK_FALSE(matches(both, meshed()));
  Rule either;
  either.clauses = {
      {{Alternative{{strings(Attribute::source_namespace, {"other"})}}, Alternative{{ports({5432})}}}}};
  CHECK(matches(either, meshed()));
  Rule inner;
  inner.clauses = {{{Alternative{{ports({5432}), ports({5432}, true)}}}}};
  CHECK_FALSE(matches(inner, meshed()));
}

TEST_CASE("a DENY rule that lost its only field has no effect, one with another field keeps it") {
  Rule lost{.lost_http_fields = true};
  CHECK_FALSE(matches(lost, meshed()));
  lost.clauses = {{{Alternative{}}}};
  CHECK_FALSE(matches(lost, meshed()));
  lost.clauses = {{{Alternative{}, Alternative{{ports({5432})}}}}};
  CHECK(matches(lost, meshed()));
  lost.clauses = {{{Alternative{}, Alternative{{ports({80})}}}}};
  CHECK_FALSE(matches(lost, meshed()));
  lost.clauses = {{{Alternative{}}}, {{Alternative{{strings(Attribute::source_namespace, {"shop"})}}}}};
  CHECK(matches(lost, meshed()));
}

TEST_CASE("a policy for some ports does not exist at others") {
  CHECK_FALSE(decide({policy(Action::allow, {}, false, {5432})}, meshed()).allow);
  CHECK(decide({policy(Action::allow, {}, false, {80})}, meshed()).allow);
  CHECK(decide({policy(Action::deny, {Rule{}}, false, {80})}, meshed()).allow);
}

TEST_CASE("a dry-run policy decides nothing and says what it would have done") {
  auto verdict = decide({policy(Action::deny, {Rule{}}, true)}, meshed());
  CHECK(verdict.allow);
  CHECK(verdict.dry_run_denies);
  REQUIRE(verdict.dry_run.size() == 1);
  verdict = decide({policy(Action::allow, {rule({ports({80})})}, true)}, meshed());
  CHECK(verdict.allow);
  CHECK(verdict.dry_run_denies);
  CHECK(verdict.dry_run.empty());
  verdict = decide({policy(Action::allow, {Rule{}}, true), policy(Action::allow, {Rule{}})}, meshed());
  CHECK(verdict.allow);
  CHECK_FALSE(verdict.dry_run_denies);
}

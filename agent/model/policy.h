// Compiled access policy: what a workload, as a server, demands of those who connect. Plain immutable values
// made by translate/ and read by authorize(); shared between workloads and generations. Any thread.
//
// A rule is an AND of clauses, a clause an OR of alternatives, an alternative an AND of conditions. That
// shape also holds HTTP: a request-level attribute is one more enumerator of Attribute and one more fact to
// compare it with.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/addr.h"
#include "model/origin.h"
#include "model/shared.h"

namespace nodemesh::model {

// Istio's four forms: "text", "text*", "*text" and "*" (present and not empty).
struct StringMatch {
  enum class Kind : uint8_t { exact, prefix, suffix, present };
  Kind kind = Kind::exact;
  std::string text;

  bool operator==(const StringMatch&) const = default;
  static StringMatch parse(std::string_view pattern);
  bool matches(std::string_view value) const;
  std::string to_string() const;
};

enum class Attribute : uint8_t {
  source_principal,  // "td/ns/x/sa/y", without the scheme
  source_trust_domain,
  source_namespace,
  source_service_account,  // "ns/sa/account": a slice of the SPIFFE id, so that comparing needs no copy
  source_ip,
  remote_ip,  // the source IP at L4
  destination_ip,
  destination_port,
};
std::string_view attribute_name(Attribute attribute);

// True when any value matches, or when none does if `negated`. An attribute that the peer does not have (no
// identity) matches no value, so a negated condition on it holds, as in Istio.
struct Condition {
  Attribute attribute{};
  bool negated = false;
  std::vector<StringMatch> strings;  // identity attributes
  std::vector<Cidr> cidrs;           // IP attributes
  std::vector<uint16_t> ports;       // destination_port

  bool operator==(const Condition&) const = default;
};

struct Alternative {
  std::vector<Condition> conditions;  // AND; empty = always true
  bool operator==(const Alternative&) const = default;
};

struct Clause {
  std::vector<Alternative> alternatives;  // OR
  bool operator==(const Clause&) const = default;
};

struct Rule {
  uint32_t index = 0;           // in the object's spec.rules
  std::vector<Clause> clauses;  // AND; empty = always true
  // Fields that need HTTP were left out. Then a match must rest on at least one field that is left: a DENY
  // made only of HTTP fields has no effect on TCP.
  bool lost_http_fields = false;

  bool operator==(const Rule&) const = default;
};

enum class Action : uint8_t {
  custom,
  deny,
  allow
};  // in order of evaluation; AUDIT decides nothing and is not compiled
std::string_view action_name(Action action);

struct Policy {
  Origin origin;
  Action action = Action::allow;
  bool dry_run = false;
  std::vector<Rule> rules;  // OR; empty = matches nothing

  bool operator==(const Policy&) const = default;
};

// A policy as it applies to one workload.
struct AppliedPolicy {
  Shared<Policy> policy;
  std::vector<uint16_t> ports;  // only these ports of the workload (targetRefs to a Service); empty = all

  bool operator==(const AppliedPolicy&) const = default;
  bool covers(uint16_t port) const;
};

enum class MtlsMode : uint8_t { permissive, strict, disable };  // disable is permissive for inbound
std::string_view mtls_mode_name(MtlsMode mode);

struct MtlsRule {
  MtlsMode mode = MtlsMode::permissive;
  Origin origin;  // the PeerAuthentication; empty for the built-in default

  bool operator==(const MtlsRule&) const = default;
};

struct PortMtls {
  uint16_t port = 0;
  MtlsRule rule;
  bool operator==(const PortMtls&) const = default;
};

struct WorkloadPolicy {
  MtlsRule mtls;
  std::vector<PortMtls> port_mtls;      // overrides by workload port, sorted
  std::vector<AppliedPolicy> policies;  // by action, then mesh-wide before namespace, then oldest first

  bool operator==(const WorkloadPolicy&) const = default;
  const MtlsRule& mtls_at(uint16_t port) const;
};

}  // namespace nodemesh::model

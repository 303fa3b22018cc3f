// The L4 authorisation decision, evaluated at the server's node: a pure function of a workload's compiled
// policy and of what is known about the peer. The data path, the re-decision of live connections and `meshctl
// why` all call it. No state, no clock, no allocation unless a dry-run policy matches; any thread.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "base/addr.h"
#include "base/reason.h"
#include "model/policy.h"

namespace nodemesh::model {

// Views into one SPIFFE id; valid as long as the string it was parsed from.
struct PeerIdentity {
  std::string_view uri;        // "spiffe://td/ns/x/sa/y"
  std::string_view principal;  // "td/ns/x/sa/y"
  std::string_view trust_domain;
  std::string_view ns;
  std::string_view service_account;
  std::string_view ns_and_account() const;  // "x/sa/y"

  // Exactly spiffe://<td>/ns/<ns>/sa/<sa>, no empty part, no further slash, no NUL; else nullopt.
  static std::optional<PeerIdentity> parse(std::string_view uri);
};

struct PeerFacts {
  std::optional<PeerIdentity> identity;  // proven by TLS or attested by the kernel on the same node
  Addr source_ip;
  Addr destination_ip;
  uint16_t destination_port = 0;  // of the workload, not of a Service
  bool mtls = false;
  bool same_node = false;  // attested: counts as authenticated

  // An identity that neither TLS nor the kernel vouches for is treated as absent.
  bool authenticated() const { return identity && (mtls || same_node); }
};

struct DryRunMatch {
  const Policy* policy = nullptr;
  uint32_t rule = 0;
};

struct Verdict {
  bool allow = true;
  Reason reason = Reason::NONE;        // why not; NONE when allowed
  const Policy* decided_by = nullptr;  // the AuthorizationPolicy that decided; null when none did
  const Origin* origin = nullptr;      // of the deciding policy or PeerAuthentication; null when none did
  int rule = -1;                       // index in the object's spec.rules of the rule that matched, or -1
  bool dry_run_denies = false;         // allowed, but would be denied if the dry-run policies were in force
  std::vector<DryRunMatch> dry_run;    // dry-run policies that matched, in order of evaluation
};

// Order: PeerAuthentication, CUSTOM, DENY, ALLOW. The pointers in the verdict live as long as `policy`.
Verdict authorize(const WorkloadPolicy& policy, const PeerFacts& facts);
// Whether one rule, or condition, holds for the peer; for explanations.
bool matches(const Rule& rule, const PeerFacts& facts);
bool matches(const Condition& condition, const PeerFacts& facts);

}  // namespace nodemesh::model

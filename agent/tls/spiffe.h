// SPIFFE ids of the one form the mesh speaks, spiffe://<trust domain>/ns/<namespace>/sa/<service account>,
// and the pattern that a client accepts of a server. Values; any thread.
#pragma once

#include <compare>
#include <string>
#include <string_view>
#include <vector>

#include "base/reason.h"

namespace nodemesh::tls {

struct SpiffeId {
  std::string trust_domain;
  std::string ns;
  std::string service_account;

  auto operator<=>(const SpiffeId&) const = default;
  // "spiffe://cluster.local/ns/default/sa/web".
  std::string uri() const;
  // Refuses (PEER_ID_INVALID) everything but the exact form: lower-case trust domain of [a-z0-9._-], a
  // namespace that is a DNS label, a service account that is a DNS subdomain; no port, query, fragment,
  // escape or empty segment.
  static Result<SpiffeId> parse(std::string_view uri);
};

// The server identities a client accepts. Service account "*" stands for any of the namespace. The trust
// domain is not part of it: the Verifier has already required one of ours.
struct AcceptedPeer {
  std::string ns;
  std::string service_account;

  auto operator<=>(const AcceptedPeer&) const = default;
  bool matches(const SpiffeId& id) const {
    return ns == id.ns && (service_account == "*" || service_account == id.service_account);
  }
};

using AcceptedPeers = std::vector<AcceptedPeer>;

bool any_matches(const AcceptedPeers& accepted, const SpiffeId& id);

}  // namespace nodemesh::tls

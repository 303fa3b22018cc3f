// What the replicas of a cluster's authority agree on, kept in the Secret `nodemesh-ca`, and how it moves
// from one root to the next without a moment in which peers distrust each other:
//
//   steady       signer A; peers trust A
//   announced    signer A; peers trust A and B, since B was announced
//   switched     signer B; peers trust B and A, until A's last certificate has ended
//   steady       signer B
//
// A certificate answer carries all trusted roots, and an agent asks at the latest when 0.6 of its
// certificate's life is over; so after one longest lifetime from the announcement every live agent knows B. A
// signer below a root that is trusted already for that long needs no announcement. Values and pure functions;
// any thread.
#pragma once

#include <map>
#include <optional>
#include <string>

#include "base/clock.h"
#include "base/reason.h"
#include "controller/signer.h"

namespace nodemesh::controller {

struct CaState {
  CaMaterial active;
  std::optional<CaMaterial> next;   // announced, not signing yet
  WallClock::time_point next_at{};  // when it may sign
  std::string retired_roots_pem;    // trusted until `retired_until`, sign nothing
  WallClock::time_point retired_until{};
  WallClock::time_point trusted_since{};  // when the bundle took its present form
  bool plugged_in = false;                // `active` or `next` came from Secret cacerts
  std::string rotation;                   // the last request to rotate that was answered; see CaWish

  bool operator==(const CaState&) const = default;
};

// Everything that peers are to trust now.
std::string trust_bundle(const CaState& state);

using SecretData = std::map<std::string, std::string>;  // decoded
SecretData write_state(const CaState& state);
// Refuses what lacks a key, naming it; whether the material is any good is Signer's to say.
Result<CaState> read_state(const SecretData& data);

// Istio's Secret `cacerts`: ca-cert.pem, ca-key.pem, root-cert.pem, cert-chain.pem, or cert-manager's
// tls.crt, tls.key, ca.crt.
Result<CaMaterial> read_cacerts(const SecretData& data);

struct CaTimes {
  seconds overlap{24 * 3600};           // from announcement to signing; not below the longest lifetime
  seconds longest_lifetime{24 * 3600};  // of a leaf: so long a retired root is trusted
  double renew_share = 0.2;             // a self-made root is replaced in this last share of its life
};

// What is asked of the authority beside what the clock brings.
struct CaWish {
  std::optional<CaMaterial> cacerts;  // checked; nullopt: there is no such Secret, or a broken one
  // Annotation nodemesh.dev/rotate-root of Secret nodemesh-ca: any new text asks for a new self-made root.
  std::string rotation;
};

enum class CaStep { none, announce, sign_with_next, drop_retired, make_root };
// The next step that is due. `make_root`: the caller makes one and announces it.
CaStep due_step(const CaState& state, const CaWish& wish, const CaTimes& times, WallClock::time_point now);
// The first state of a cluster.
CaState first_state(CaMaterial material, bool plugged_in, WallClock::time_point now);
// `material` is to sign: at once when its root has been trusted for the overlap, else after that.
CaState announced(const CaState& state, CaMaterial material, bool plugged_in, const CaTimes& times,
                  WallClock::time_point now);
CaState switched(const CaState& state, const CaTimes& times, WallClock::time_point now);
CaState without_retired(const CaState& state);

}  // namespace nodemesh::controller

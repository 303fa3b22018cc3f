// Decides on one certificate request: who asks, is the asked identity theirs, is the request sound; then has
// it signed. The reasons go to our log and metrics; the caller learns only whether it was an authorisation or
// a malformed request, so that it cannot map the mesh by asking. Controller's main thread only.
#pragma once

#include <array>
#include <cstdint>
#include <expected>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/reason.h"
#include "controller/ca.h"
#include "tls/spiffe.h"

namespace nodemesh::controller {

// Why there is no certificate; the label `reason` of nodemesh_ca_refused_total.
enum class Refusal : uint8_t {
  no_token,            // no `authorization: Bearer`, or nothing that could be a token
  token_rejected,      // TokenReview says no, or not for our audience
  token_not_of_pod,    // not a service account's, or not bound to a Pod
  caller_pod_unknown,  // the Pod in the token does not exist, with another uid, or has finished
  not_an_agent,        // asks for another's identity and is no agent
  no_pod_on_node,      // no unfinished Pod of the asked service account on the caller's node
  identity_invalid,    // ImpersonatedIdentity is not a SPIFFE id of the mesh's form
  foreign_trust_domain,
  request_invalid,  // the CSR or the lifetime
  api_unavailable,  // the API server could not be asked
  overloaded,       // too many requests under way
  internal,
  count,
};
std::string_view name(Refusal refusal);

// The Pod that asked, as far as it is known for certain.
struct CallerPod {
  std::string ns, name, uid;
};

struct Refused {
  Refusal refusal;
  std::string why;  // for the log; may hold the caller's bytes
  std::optional<CallerPod> pod = {};
};
inline std::unexpected<Refused> refused(Refusal refusal, std::string why) {
  return std::unexpected(Refused{refusal, std::move(why)});
}

// What the caller says to prove who it is. Whether it may connect at all was decided before.
struct Caller {
  std::string token;  // of `authorization: Bearer`; may be empty: secret, never logged
  std::string peer;   // for the log
};

// Two sides in production (the folder of a standalone mesh, the cluster), and tests.
class Authorizer {
 public:
  using Verdict = std::expected<tls::SpiffeId, Refused>;
  using Done = std::move_only_function<void(Verdict)>;
  virtual ~Authorizer() = default;
  // Which identity the caller gets: `asked`, which is one of our trust domain, or without it the caller's
  // own. `done` runs once, perhaps within this call, on the main thread.
  virtual void authorize(const Caller& caller, const std::optional<tls::SpiffeId>& asked, Done done) = 0;
};

struct IssuerCounters {
  uint64_t issued = 0;
  uint64_t unlogged = 0;  // refusals above the log's rate
  std::array<uint64_t, static_cast<size_t>(Refusal::count)> refused{};
};

class Issuer {
 public:
  struct Request {
    std::string csr;
    int64_t lifetime_seconds = 0;
    std::string impersonated_identity;  // may be empty
  };
  using Done = std::move_only_function<void(std::expected<std::vector<std::string>, Refusal>)>;

  // Runs for each refusal, before the caller hears of it.
  using OnRefused = std::function<void(const Refused&)>;

  // All outlive the issuer.
  Issuer(
      const Clock& clock, const CertificateAuthority& authority, Authorizer& authorizer,
      OnRefused on_refused = [](const Refused&) {})
      : clock_(clock), authority_(authority), authorizer_(authorizer), on_refused_(std::move(on_refused)) {}
  Issuer(const Issuer&) = delete;
  Issuer& operator=(const Issuer&) = delete;

  // `done` gets PEM, leaf first, the roots last; once, perhaps within this call. It is not called when the
  // issuer is gone by then.
  void issue(Caller caller, Request request, Done done);
  const IssuerCounters& counters() const { return counters_; }

 private:
  using Signed = std::expected<CertificateAuthority::Certificate, Refused>;
  Signed sign(const tls::SpiffeId& id, const Request& request) const;
  void finish(const Caller& caller, const Request& request, Authorizer::Verdict verdict, Done done);
  void refuse(const Caller& caller, const Request& request, const Refused& why, Done done);
  bool may_log();

  const Clock& clock_;
  const CertificateAuthority& authority_;
  Authorizer& authorizer_;
  OnRefused on_refused_;
  IssuerCounters counters_;
  Monotonic::time_point log_window_{};
  int logged_ = 0;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

}  // namespace nodemesh::controller

// Who a bearer token belongs to, as the API server says (authentication.k8s.io/v1 TokenReview with our
// audience). Good answers are remembered for a short time by the token's hash, since an agent asks for all
// its node's identities in one breath; whether the Pod still exists is checked anew each time by the caller.
// While the API server does not answer, or has too much to do, a good answer counts for an hour: nobody could
// revoke the token then, nor could kubelet renew it, and short certificates would end with the first minute
// of an outage. Main thread only. Tokens are never logged.
#pragma once

#include <array>
#include <cstdint>
#include <expected>
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "base/clock.h"
#include "controller/api.h"
#include "controller/issuer.h"

namespace nodemesh::controller {

struct TokenOwner {
  std::string ns, service_account;
  std::string pod_name, pod_uid;

  bool operator==(const TokenOwner&) const = default;
};
using Review = std::expected<TokenOwner, Refused>;

// The answer of the API server: the token is good, for `audience`, a service account's and bound to a Pod.
Review read_review(const Json& review, const std::string& audience);

class TokenReviewer {
 public:
  using Done = std::move_only_function<void(Review)>;
  // Both outlive it.
  TokenReviewer(const Clock& clock, Api& api, std::string audience)
      : clock_(clock), api_(api), audience_(std::move(audience)) {}
  // `done` runs once, perhaps within this call, and not when the reviewer is gone by then.
  void review(const std::string& token, Done done);

 private:
  using Hash = std::array<uint8_t, 32>;
  struct Remembered {
    TokenOwner owner;
    Monotonic::time_point until;             // without asking again
    Monotonic::time_point until_unanswered;  // when there is nobody to ask
  };
  void on_reply(const Hash& hash, const ApiReply& reply, Done done);
  void remember(const Hash& hash, const TokenOwner& owner);

  const Clock& clock_;
  Api& api_;
  const std::string audience_;
  std::map<Hash, Remembered> known_;
  size_t in_flight_ = 0;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

}  // namespace nodemesh::controller

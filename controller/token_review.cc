#include "controller/token_review.h"

#include <algorithm>

#include <fmt/format.h>

#include "tls/openssl.h"

namespace nodemesh::controller {
namespace {

constexpr auto kRemember = seconds(30);
constexpr auto kRememberUnanswered = std::chrono::hours(1);
constexpr size_t kMaxRemembered = 8192;
constexpr size_t kMaxInFlight = 128;  // a flood of bad tokens must not become one of TokenReviews
constexpr size_t kMaxToken = 16 * 1024;
constexpr std::string_view kServiceAccount = "system:serviceaccount:";

// header.payload.signature in base64url (RFC 7519 3): what is not, no API server need be asked about.
bool looks_like_jwt(std::string_view token) {
  auto good = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' ||
           c == '_' || c == '.';
  };
  return token.size() <= kMaxToken && std::ranges::count(token, '.') == 2 && std::ranges::all_of(token, good);
}

// TokenReview's extras are lists of strings.
std::string extra(const Json& review, std::string_view name) {
  const Json* values = find(review, {"status", "user", "extra", name});
  if (values == nullptr || !values->is_array() || values->size() != 1 || !values->front().is_string())
    return {};
  return values->front().get<std::string>();
}

bool has_audience(const Json& review, const std::string& audience) {
  const Json* audiences = find(review, {"status", "audiences"});
  return audiences != nullptr && audiences->is_array() &&
         std::ranges::any_of(*audiences, [&](const Json& one) { return one.is_string() && one == audience; });
}

}  // namespace

Review read_review(const Json& review, const std::string& audience) {
  const Json* authenticated = find(review, {"status", "authenticated"});
  if (authenticated == nullptr || !authenticated->is_boolean() || !authenticated->get<bool>()) {
    std::string why = text_at(review, {"status", "error"});
    return refused(Refusal::token_rejected, "TokenReview: " + (why.empty() ? "not authenticated" : why));
  }
  if (!has_audience(review, audience))
    return refused(Refusal::token_rejected, "TokenReview: the token is not for audience " + audience);
  std::string user = text_at(review, {"status", "user", "username"});
  size_t colon = user.find(':', kServiceAccount.size());
  if (!user.starts_with(kServiceAccount) || colon == user.npos)
    return refused(Refusal::token_not_of_pod, "the token belongs to " + user + ", not to a service account");
  TokenOwner out{.ns = user.substr(kServiceAccount.size(), colon - kServiceAccount.size()),
                 .service_account = user.substr(colon + 1),
                 .pod_name = extra(review, "authentication.kubernetes.io/pod-name"),
                 .pod_uid = extra(review, "authentication.kubernetes.io/pod-uid")};
  if (out.pod_name.empty() || out.pod_uid.empty())
    return refused(Refusal::token_not_of_pod,
                   "the token of " + user + " is not bound to a Pod; use a projected volume's");
  return out;
}

void TokenReviewer::review(const std::string& token, Done done) {
  if (token.empty()) return done(refused(Refusal::no_token, "no authorization: Bearer"));
  if (!looks_like_jwt(token)) return done(refused(Refusal::no_token, "the bearer token is no JWT"));
  Hash hash = tls::sha256(token);
  auto found = known_.find(hash);
  if (found != known_.end() && clock_.now() < found->second.until) return done(found->second.owner);
  // Strangers' floods leave room for who was good within the hour.
  bool stranger = found == known_.end() || clock_.now() >= found->second.until_unanswered;
  if (in_flight_ >= (stranger ? kMaxInFlight : 2 * kMaxInFlight))
    return done(refused(Refusal::overloaded, fmt::format("{} TokenReviews are under way", in_flight_)));
  Json body = {{"apiVersion", "authentication.k8s.io/v1"},
               {"kind", "TokenReview"},
               {"spec", {{"token", token}, {"audiences", {audience_}}}}};
  ++in_flight_;
  api_.call(
      kube::Verb::post, "/apis/authentication.k8s.io/v1/tokenreviews", dump(body),
      [this, alive = std::weak_ptr<bool>(alive_), hash, done = std::move(done)](ApiReply reply) mutable {
        if (!alive.expired()) on_reply(hash, reply, std::move(done));
      });
}

void TokenReviewer::on_reply(const Hash& hash, const ApiReply& reply, Done done) {
  --in_flight_;
  bool unanswered = reply.status == 0 || reply.status == 429 || reply.status >= 500;
  auto known = known_.find(hash);
  if (unanswered && known != known_.end() && clock_.now() < known->second.until_unanswered)
    return done(known->second.owner);
  if (!reply.ok()) {
    std::string fix = reply.status == 403 ? "; grant `create` on tokenreviews.authentication.k8s.io" : "";
    return done(refused(Refusal::api_unavailable, reply.error + fix));
  }
  auto review = read_review(parse_object(reply.body), audience_);
  if (review) {
    remember(hash, *review);
  } else {
    known_.erase(hash);
  }
  done(std::move(review));
}

void TokenReviewer::remember(const Hash& hash, const TokenOwner& owner) {
  if (known_.size() >= kMaxRemembered)
    std::erase_if(known_, [&](const auto& item) { return item.second.until_unanswered <= clock_.now(); });
  if (known_.size() >= kMaxRemembered) known_.clear();
  known_[hash] = {owner, clock_.now() + kRemember, clock_.now() + kRememberUnanswered};
}

}  // namespace nodemesh::controller

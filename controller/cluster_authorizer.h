// Authorisation on Kubernetes. An agent (a Pod of a listed service account) gets the identities of service
// accounts that have an unfinished Pod on its own node, as Istio's CA does for ztunnel; any other Pod gets
// its own identity and no other. Pods are known from a watch; what the watch has not, the API server is asked
// for once. Main thread only.
#pragma once

#include <memory>
#include <set>
#include <string>
#include <utility>

#include "controller/api.h"
#include "controller/issuer.h"
#include "controller/pod_index.h"
#include "controller/token_review.h"

namespace nodemesh::controller {

using ServiceAccount = std::pair<std::string, std::string>;  // namespace, name

// May the owner of the token, whose Pod is `pod` (null: not found), act at all?
std::expected<void, Refused> check_caller(const TokenOwner& owner, const PodFact* pod);

class ClusterAuthorizer final : public Authorizer {
 public:
  struct Settings {
    std::set<ServiceAccount> agents;
    std::string audience = "istio-ca";
    std::string trust_domain = "cluster.local";
  };
  // All outlive it.
  ClusterAuthorizer(const Clock& clock, Api& api, const PodIndex& pods, Settings settings)
      : api_(api), pods_(pods), settings_(std::move(settings)), reviewer_(clock, api, settings_.audience) {}
  // `done` is not called when the authoriser is gone by then.
  void authorize(const Caller& caller, const std::optional<tls::SpiffeId>& asked, Done done) override;

 private:
  struct Question {
    TokenOwner owner;
    std::optional<tls::SpiffeId> asked;
    Done done;
  };
  void find_caller(Question question);
  void decide(Question question, const PodFact* pod);
  void look_on_node(Question question, const std::string& node);
  template <class Read>
  void ask(std::string path, Question question, Read read);

  Api& api_;
  const PodIndex& pods_;
  const Settings settings_;
  TokenReviewer reviewer_;
  size_t lookups_ = 0;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

}  // namespace nodemesh::controller

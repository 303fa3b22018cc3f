// Keeps the authority of a cluster in step with its two Secrets: reads `nodemesh-ca` (the replicas'
// agreement, see ca_state.h) and `cacerts` (the operator's) every few seconds and gives the authority what to
// sign with. Where there is no agreement yet, one is created; of two replicas that create at once, one gets
// 409 and takes the other's. The leader also takes the steps that are due. What cannot be read or is no good
// changes nothing: the last good material stays. Main thread only.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "base/clock.h"
#include "controller/api.h"
#include "controller/ca.h"
#include "controller/ca_state.h"
#include "controller/lease.h"
#include "io/reactor.h"

namespace nodemesh::controller {

// The decoded `data` of a Secret's JSON; values that are no base64 are refused with their key.
Result<SecretData> read_secret_data(const Json& secret);
Json write_secret_data(const SecretData& data);

class ClusterCa final : public LeaderDuty {
 public:
  struct Settings {
    std::string ns;
    std::string secret = "nodemesh-ca";
    std::string plugged_secret = "cacerts";
    std::string trust_domain = "cluster.local";
    seconds root_lifetime{3650LL * 24 * 3600};
    CaTimes times;
    milliseconds refresh{10'000};
  };
  using OnChange = std::function<void()>;
  // All references outlive it. `on_change` runs after the authority got another signer or trust bundle.
  ClusterCa(io::Reactor& reactor, const Clock& clock, Api& api, CertificateAuthority& authority,
            Settings settings, OnChange on_change);

  void start() { refresh(); }
  void begin() override;
  void end() override { leads_ = false; }
  // Empty when there is something to sign with and nothing is wrong with the Secrets.
  const std::string& trouble() const { return trouble_; }
  const std::optional<CaState>& state() const { return state_; }

 private:
  void refresh();
  void on_plugged(ApiReply plugged);
  void on_secret(ApiReply reply);
  void read_plugged(const ApiReply& reply);
  Result<CaState> begin_with() const;
  void create();
  std::optional<CaState> adopt(const Json& secret);
  void advance(Json secret, const CaState& state);
  // The step that is due, if one is.
  Result<std::optional<CaState>> next_state(const CaState& state, std::string rotation);
  void put(Json secret, const CaState& state);
  void on_put(ApiReply reply);
  void finish();
  // What is wrong with what was read, and with the step that was due. Each stays until its own next turn, so
  // that the one's success does not hide the other; what is said already is not logged again.
  void complain(std::string what);
  void step_ended(std::string trouble);
  void tell();
  std::string path() const { return "/api/v1/namespaces/" + settings_.ns + "/secrets"; }
  // Runs `then` with the reply unless this is gone.
  void call(kube::Verb verb, std::string where, std::string body, void (ClusterCa::*then)(ApiReply));

  io::Reactor& reactor_;
  const Clock& clock_;
  Api& api_;
  CertificateAuthority& authority_;
  const Settings settings_;
  OnChange on_change_;
  bool leads_ = false, asking_ = false, again_ = false;
  std::optional<CaState> state_;  // in force
  std::optional<CaMaterial> plugged_;
  bool plugged_exists_ = false, plugged_known_ = false;
  std::string plugged_trouble_, read_trouble_, step_trouble_, trouble_;
  io::Timer timer_{[this] { refresh(); }};
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

}  // namespace nodemesh::controller

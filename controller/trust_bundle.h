// Publishes what peers are to trust as ConfigMap `nodemesh-root-cert`, key root-cert.pem, in our own
// namespace: agents mount it to verify the controller itself. One that carries another's mark is left alone.
// Leader only; main thread only.
#pragma once

#include <memory>
#include <string>

#include "controller/api.h"
#include "controller/ca.h"
#include "controller/lease.h"
#include "io/reactor.h"

namespace nodemesh::controller {

class TrustBundlePublisher final : public LeaderDuty {
 public:
  struct Settings {
    std::string ns;
    std::string name = "nodemesh-root-cert";
    milliseconds refresh{30'000};
  };
  // All outlive it.
  TrustBundlePublisher(io::Reactor& reactor, Api& api, const CertificateAuthority& authority,
                       Settings settings)
      : reactor_(reactor), api_(api), authority_(authority), settings_(std::move(settings)) {}

  void begin() override;
  void end() override;
  // The authority's bundle may have changed.
  void refresh();
  // Empty when the ConfigMap says what it should, or we do not lead.
  const std::string& trouble() const { return trouble_; }

 private:
  void on_read(const ApiReply& reply);
  void write(kube::Verb verb, Json map);
  void settle(std::string trouble);
  std::string path() const { return "/api/v1/namespaces/" + settings_.ns + "/configmaps"; }

  io::Reactor& reactor_;
  Api& api_;
  const CertificateAuthority& authority_;
  const Settings settings_;
  bool leads_ = false, asking_ = false, again_ = false;
  std::string trouble_;
  io::Timer timer_{[this] { refresh(); }};
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

}  // namespace nodemesh::controller

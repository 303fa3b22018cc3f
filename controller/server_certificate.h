// The certificate that agents see when they connect: made by our own authority for the DNS names of the
// Service, kept in memory only, replaced at half of its life and whenever the authority signs with something
// else. Connections that are open keep the one they began with. Main thread only.
#pragma once

#include <string>
#include <vector>

#include "base/clock.h"
#include "controller/ca.h"
#include "io/reactor.h"
#include "tls/openssl.h"

namespace nodemesh::controller {

class ServerCertificate {
 public:
  // All outlive it.
  ServerCertificate(io::Reactor& reactor, const Clock& clock, const CertificateAuthority& authority,
                    std::vector<std::string> dns_names)
      : reactor_(reactor), clock_(clock), authority_(authority), dns_names_(std::move(dns_names)) {}

  // Makes a new one when it is due; call when the authority may have changed.
  void refresh();
  // Null: there is none, or it has expired.
  SSL_CTX* context() const;
  WallClock::time_point not_after() const { return not_after_; }

 private:
  Result<> renew();

  io::Reactor& reactor_;
  const Clock& clock_;
  const CertificateAuthority& authority_;
  const std::vector<std::string> dns_names_;
  std::shared_ptr<const Signer> signer_;  // of the one in use
  tls::SslCtxPtr context_;
  WallClock::time_point renew_at_{}, not_after_{};
  io::Timer timer_{[this] { refresh(); }};
};

// "a.ns.svc", and what of it resolves inside a cluster: "a", "a.ns", "a.ns.svc.cluster.local".
std::vector<std::string> service_names(const std::string& service, const std::string& ns,
                                       const std::string& cluster_domain);

}  // namespace nodemesh::controller

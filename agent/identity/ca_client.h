// Asks a certificate authority that speaks Istio's IstioCertificateService (our controller, istiod,
// istio-csr) for one certificate at a time. Lives on the control thread; no retries of its own:
// CredentialStore has those.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "base/clock.h"
#include "base/reason.h"
#include "http/grpc_client.h"
#include "io/reactor.h"
#include "tls/credential.h"

namespace nodemesh::identity {

struct Issued {
  std::shared_ptr<const tls::Credential> credential;
  std::string roots_pem;  // the last element of the answer
};

// A seam with two sides: CaClient in production, a scripted authority in the store's tests.
class Authority {
 public:
  using Done = std::move_only_function<void(Result<Issued>)>;
  virtual ~Authority() = default;
  // `done` runs once on the control thread, never before request() returns. The credential was checked: it is
  // for the key made here and carries `uri`.
  virtual void request(const std::string& uri, seconds lifetime, Done done) = 0;
};

class CaClient final : public Authority {
 public:
  struct Settings {
    http::GrpcClient::Target target;
    std::string
        token_file;  // read anew for each request, since kubelet rotates it; empty: no authorization header
    std::string cluster_id;  // header `clusterid`; empty: none
    milliseconds timeout{10'000};
  };
  CaClient(io::Reactor& reactor, Settings settings);
  ~CaClient() override;
  void request(const std::string& uri, seconds lifetime, Done done) override;

 private:
  io::Reactor& reactor_;
  Settings settings_;
  http::GrpcClient client_;
};

// The answer of the authority turned into a credential: `body` is an IstioCertificateResponse, hostile until
// checked.
Result<Issued> read_response(std::string_view body, std::string_view key_pem, const std::string& uri);

}  // namespace nodemesh::identity

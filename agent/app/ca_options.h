// Where a proxy gets its certificates, as its command line says it: a socket of this machine, or a host that
// speaks Istio's CA protocol over TLS (our controller, istiod, istio-csr). Values; start-up only.
#pragma once

#include <string>

#include "base/reason.h"
#include "identity/ca_client.h"

namespace nodemesh::app {

struct CaOptions {
  std::string socket = "unix:/run/nodemesh/ca/ca.sock";
  std::string address;      // host:port; wins over `socket`
  std::string root_file;    // PEM of the roots that vouch for the host, read at each connection
  std::string server_name;  // empty: the host of `address`
  std::string token_file;   // read for each request
  std::string cluster_id;   // header `clusterid`, which istiod wants where it serves several clusters
};

// Errors are one sentence that names the option.
Result<identity::CaClient::Settings> ca_settings(const CaOptions& options);

}  // namespace nodemesh::app

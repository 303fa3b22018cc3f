// Where the API server is and how to prove to each other who we are: read from the pod's service account or
// from a kubeconfig file (client.authentication.k8s.io plugins excepted). Files named here are read when they
// are needed, not once, since tokens, certificates and roots rotate. Values, and a token cache that belongs
// to the thread of its client. Never logs or prints what it reads.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <string_view>

#include "base/clock.h"
#include "base/reason.h"

namespace nodemesh::kube {

// Something that is written in the configuration itself, or in a file that may change at any time.
struct Material {
  std::string text;
  std::string file;  // absolute; wins over `text`

  bool empty() const { return text.empty() && file.empty(); }
  // The bytes, at most 1 MiB. Fails with a sentence that names `what` and the file.
  Result<std::string> read(std::string_view what) const;
};

struct Access {
  std::string host;  // a DNS name, or an address without brackets
  uint16_t port = 443;
  std::string path_prefix;  // "" or "/k8s/clusters/x", without a slash at the end
  std::string server_name;  // what the server's certificate must be for: a DNS name or an address
  Material roots;           // PEM; empty: the system's
  Material token;
  Material certificate, key;  // PEM, both or none
  std::string ns = "default";
  std::string origin;  // "kubeconfig /root/.kube/config, context kind", for messages

  std::string url() const;
  std::string authority() const;  // host:port, as HTTP's Host has it
};

// The environment and the file system as a parameter.
struct AccessPlaces {
  std::function<std::optional<std::string>(const std::string& name)> variable;  // default: getenv
  std::string service_account = "/var/run/secrets/kubernetes.io/serviceaccount";
};

// From KUBERNETES_SERVICE_HOST, KUBERNETES_SERVICE_PORT and the mounted service account.
Result<Access> in_cluster_access(const AccessPlaces& places = {});

struct KubeconfigChoice {
  std::string path;     // empty: $KUBECONFIG (one file), else $HOME/.kube/config
  std::string context;  // empty: current-context
  std::string cluster;  // empty: the context's
  std::string user;     // empty: the context's
};
Result<Access> kubeconfig_access(const KubeconfigChoice& choice, const AccessPlaces& places = {});
// The same from the file's text. Relative paths in it are relative to `path`.
Result<Access> parse_kubeconfig(std::string_view text, const std::string& path,
                                const KubeconfigChoice& choice);

// A bearer token that is re-read when it is a minute old, when its file was changed, or when the server says
// it is not good (bound tokens live an hour and are replaced in place; KEP-1205).
class TokenCache {
 public:
  TokenCache(Material material, const Clock& clock) : material_(std::move(material)), clock_(clock) {}
  // Empty when there is none to send. A file that cannot be read leaves the last good token in use.
  Result<std::string> token();
  // The next token() reads the file. Returns whether there is a file to read.
  bool expire();

 private:
  Material material_;
  const Clock& clock_;
  std::string token_;
  Monotonic::time_point read_at_{};
  int64_t changed_ns_ = 0;  // the file's mtime
  bool read_ = false;
};

}  // namespace nodemesh::kube

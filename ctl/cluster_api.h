// The API server as a command sees it: one blocking request after the other, through a kubeconfig or, in a
// pod, its service account. Has a reactor of its own; one thread, the command's.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

#include "base/reason.h"
#include "ctl/context.h"
#include "kube/api_client.h"

namespace nodemesh::ctl {

struct ClusterReply {
  int status = 0;       // HTTP; 0: no answer
  nlohmann::json body;  // an object when ok(); null where the answer was none
  std::string error;    // what went wrong, the request named: the server's words, so print it by printable()
  bool ok() const { return status >= 200 && status < 300; }
  bool not_found() const { return status == 404; }
  bool forbidden() const { return status == 401 || status == 403; }
};

// A seam with two sides: the API server in production, recorded objects in tests.
class ClusterApi {
 public:
  virtual ~ClusterApi() = default;
  // `path` percent-encoded, with its query; `body` null: none. `content_type` of PATCH says which kind.
  virtual ClusterReply call(kube::Verb verb, const std::string& path, const nlohmann::json& body = nullptr,
                            std::string_view content_type = "application/json") = 0;
  // An answer that is no JSON: a container's log. Recorded objects have none.
  virtual Result<std::string> text(const std::string& path) { return fail("GET " + path + ": no text"); }
  ClusterReply get(const std::string& path) { return call(kube::Verb::get, path); }
  // The object's metadata alone, managedFields among them: of a Secret the names of its keys and no value.
  virtual ClusterReply get_metadata(const std::string& path) { return get(path); }
  // All items below a collection's `path`, in pages of 500. Items of a list have no kind and no apiVersion.
  // The error is CONNECT_FAILED where the server gave no answer.
  Result<std::vector<nlohmann::json>> list(const std::string& path);
};

// By --kubeconfig and --context of the command line, else $KUBECONFIG, else ~/.kube/config, else the pod's
// service account. Nothing is sent yet. The error is a sentence for the user.
Result<kube::Access> cluster_access(const Context& context);
std::unique_ptr<ClusterApi> open_cluster(kube::Access access);

// A reply that is not ok(), as an error: CONNECT_FAILED where the server gave no answer.
Error error_of(const ClusterReply& reply);
// Says that no cluster could be chosen, or that its API server failed or refused, and returns the exit code:
// kUnreachable for CONNECT_FAILED.
int cluster_failed(const Context& context, const Error& error);

}  // namespace nodemesh::ctl

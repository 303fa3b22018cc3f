#include "ctl/cluster_api.h"

#include <cstdlib>
#include <optional>
#include <utility>

#include <fmt/format.h>

#include "base/clock.h"
#include "ctl/json_at.h"
#include "io/reactor.h"

namespace nodemesh::ctl {
namespace {

constexpr int kPage = 500;
constexpr int kMaxPages = 2000;  // a million objects
constexpr milliseconds kTimeout{15'000};

class ApiServer final : public ClusterApi {
 public:
  explicit ApiServer(kube::Access access) : client_(reactor_, clock_, std::move(access)) {}

  ClusterReply call(kube::Verb verb, const std::string& path, const nlohmann::json& body,
                    std::string_view content_type) override {
    kube::ApiRequest request{.verb = verb, .path = path, .content_type = std::string(content_type)};
    if (!body.is_null()) request.body = body.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
    return send(std::move(request));
  }

  ClusterReply get_metadata(const std::string& path) override {
    return send({.verb = kube::Verb::get,
                 .path = path,
                 .accept = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"});
  }

  Result<std::string> text(const std::string& path) override {
    auto answer = ask({.path = path, .accept = "*/*"});
    if (answer && answer->ok()) return std::move(answer->body);
    return fail(read("GET " + path, answer).error);
  }

 private:
  ClusterReply send(kube::ApiRequest request) {
    std::string what = fmt::format("{} {}", kube::verb_name(request.verb), request.path);
    return read(what, ask(std::move(request)));
  }

  Result<kube::ApiAnswer> ask(kube::ApiRequest request) {
    request.timeout = kTimeout;
    std::optional<Result<kube::ApiAnswer>> answer;
    client_.request(std::move(request), [&](Result<kube::ApiAnswer> got) { answer = std::move(got); });
    while (!answer) reactor_.run_once(seconds(1));  // the client ends every call in time
    return std::move(*answer);
  }

  ClusterReply read(const std::string& what, const Result<kube::ApiAnswer>& answer) const {
    if (!answer) return {0, nullptr, what + ": " + answer.error().message};
    ClusterReply reply{answer->status, parse_json(answer->body), {}};
    if (!reply.ok()) {
      reply.error = fmt::format("{}: {}", what, kube::failure_text(reply.status, answer->body));
    } else if (!answer->body.empty() && !reply.body.is_object()) {
      reply.error = what + ": the answer is not a JSON object";
      reply.status = 0;
    }
    if (!reply.body.is_object()) reply.body = nullptr;
    return reply;
  }

  io::Reactor reactor_;
  Clock clock_;
  kube::ApiClient client_;
};

bool in_a_pod_without_kubeconfig(const Context& context) {
  return context.kubeconfig.empty() && context.kube_context.empty() && std::getenv("KUBECONFIG") == nullptr &&
         std::getenv("KUBERNETES_SERVICE_HOST") != nullptr;
}

}  // namespace

Result<std::vector<nlohmann::json>> ClusterApi::list(const std::string& path) {
  std::vector<nlohmann::json> items;
  std::string next;
  int pages = 0;
  do {
    if (++pages > kMaxPages) return fail("GET " + path + ": the list does not end");
    std::string page = fmt::format("{}{}limit={}", path, path.find('?') == path.npos ? '?' : '&', kPage);
    if (!next.empty()) page += "&continue=" + kube::percent_encode(next);
    ClusterReply reply = get(page);
    if (!reply.ok()) return std::unexpected(error_of(reply));
    auto found = reply.body.find("items");
    if (found == reply.body.end() || !found->is_array())
      return fail("GET " + path + ": the answer is no list");
    for (auto& item : *found) items.push_back(std::move(item));
    auto meta = reply.body.find("metadata");
    next.clear();
    if (meta != reply.body.end() && meta->is_object()) {
      auto token = meta->find("continue");
      if (token != meta->end() && token->is_string()) next = token->get<std::string>();
    }
  } while (!next.empty());
  return items;
}

Result<kube::Access> cluster_access(const Context& context) {
  if (in_a_pod_without_kubeconfig(context)) return kube::in_cluster_access();
  return kube::kubeconfig_access({.path = context.kubeconfig, .context = context.kube_context});
}

std::unique_ptr<ClusterApi> open_cluster(kube::Access access) {
  return std::make_unique<ApiServer>(std::move(access));
}

Error error_of(const ClusterReply& reply) {
  return {reply.status == 0 ? Reason::CONNECT_FAILED : Reason::INTERNAL, reply.error};
}

int cluster_failed(const Context& context, const Error& error) {
  if (error.reason == Reason::CONNECT_FAILED)
    return context.failed(kUnreachable, error.message,
                          "look whether `kubectl version` reaches the cluster; --kubeconfig and --context "
                          "choose another");
  return context.failed(
      kFailure, error.message,
      "--kubeconfig and --context choose the cluster; docs/meshctl.md lists the rights that "
      "commands need");
}

}  // namespace nodemesh::ctl

#include "controller/cluster_authorizer.h"

#include <algorithm>

#include <fmt/format.h>

#include "kube/json.h"

namespace nodemesh::controller {
namespace {

constexpr size_t kMaxLookups = 64;  // live questions to the API server at a time

std::string quoted(const tls::SpiffeId& id) {
  return id.ns + "/" + id.service_account;
}

std::unexpected<Refused> refused_of(const TokenOwner& owner, Refusal refusal, std::string why) {
  return std::unexpected(
      Refused{refusal, std::move(why), CallerPod{owner.ns, owner.pod_name, owner.pod_uid}});
}

// A list of Pods of one node and namespace: does an unfinished one have the service account?
bool any_runs(std::string_view body, const std::string& node, const tls::SpiffeId& id) {
  auto page = kube::parse_list_page(body);
  if (!page) return false;
  return std::ranges::any_of(page->items, [&](kube::Node& item) {
    auto pod = read_pod(*kube::make_api_object(std::move(item), "Pod", "v1"));
    return pod && !pod->finished && pod->node == node && pod->ns == id.ns &&
           pod->service_account == id.service_account;
  });
}

}  // namespace

std::expected<void, Refused> check_caller(const TokenOwner& owner, const PodFact* pod) {
  std::string name = owner.ns + "/" + owner.pod_name;
  if (pod == nullptr)
    return refused(Refusal::caller_pod_unknown, "the caller's Pod " + name + " does not exist");
  if (pod->uid != owner.pod_uid)
    return refused(Refusal::caller_pod_unknown,
                   "the caller's Pod " + name + " has another uid than its token");
  if (pod->service_account != owner.service_account)
    return refused(Refusal::caller_pod_unknown,
                   fmt::format("the caller's Pod {} runs as {}, its token is of {}", name,
                               pod->service_account, owner.service_account));
  if (pod->finished)
    return refused(Refusal::caller_pod_unknown, "the caller's Pod " + name + " has finished");
  return {};
}

void ClusterAuthorizer::authorize(const Caller& caller, const std::optional<tls::SpiffeId>& asked,
                                  Done done) {
  reviewer_.review(caller.token, [this, alive = std::weak_ptr<bool>(alive_), asked,
                                  done = std::move(done)](Review owner) mutable {
    if (alive.expired()) return;
    if (!owner) return done(std::unexpected(owner.error()));
    find_caller({std::move(*owner), std::move(asked), std::move(done)});
  });
}

// One live question; `read` gets it back with the reply.
template <class Read>
void ClusterAuthorizer::ask(std::string path, Question question, Read read) {
  if (lookups_ >= kMaxLookups)
    return question.done(
        refused(Refusal::overloaded, fmt::format("{} look-ups of Pods are under way", lookups_)));
  ++lookups_;
  api_.call(kube::Verb::get, std::move(path), {},
            [this, alive = std::weak_ptr<bool>(alive_), question = std::move(question),
             read = std::move(read)](ApiReply reply) mutable {
              if (alive.expired()) return;
              --lookups_;
              if (!reply.ok() && !reply.not_found())
                return question.done(refused(Refusal::api_unavailable, reply.error));
              read(std::move(question), reply);
            });
}

void ClusterAuthorizer::find_caller(Question question) {
  const TokenOwner& owner = question.owner;
  const PodFact* pod = pods_.find(owner.ns, owner.pod_name);
  // The watch may lag behind a Pod that has just started, or was replaced by another of its name.
  if (pod != nullptr && pod->uid == owner.pod_uid) return decide(std::move(question), pod);
  std::string path = "/api/v1/namespaces/" + kube::percent_encode(owner.ns) + "/pods/" +
                     kube::percent_encode(owner.pod_name);
  ask(std::move(path), std::move(question), [this](Question asked, const ApiReply& reply) {
    auto live = reply.ok() ? read_pod_json(reply.body) : std::nullopt;
    decide(std::move(asked), live ? &*live : nullptr);
  });
}

void ClusterAuthorizer::decide(Question question, const PodFact* pod) {
  const TokenOwner& owner = question.owner;
  if (auto good = check_caller(owner, pod); !good) return question.done(std::unexpected(good.error()));
  tls::SpiffeId own{settings_.trust_domain, owner.ns, owner.service_account};
  if (!question.asked || *question.asked == own) return question.done(own);
  if (!settings_.agents.contains({owner.ns, owner.service_account}))
    return question.done(
        refused_of(owner, Refusal::not_an_agent,
                   fmt::format("{} is no agent and asks for {}", quoted(own), quoted(*question.asked))));
  if (pods_.runs(pod->node, question.asked->ns, question.asked->service_account)) {
    tls::SpiffeId granted = *question.asked;
    return question.done(std::move(granted));
  }
  look_on_node(std::move(question), pod->node);
}

void ClusterAuthorizer::look_on_node(Question question, const std::string& node) {
  if (node.empty())
    return question.done(refused(Refusal::no_pod_on_node, "the agent's own Pod is on no node yet"));
  std::string path = fmt::format("/api/v1/namespaces/{}/pods?fieldSelector=spec.nodeName%3D{}",
                                 kube::percent_encode(question.asked->ns), kube::percent_encode(node));
  ask(std::move(path), std::move(question), [node](Question asked, const ApiReply& reply) {
    tls::SpiffeId id = *asked.asked;
    if (reply.ok() && any_runs(reply.body, node, id)) return asked.done(std::move(id));
    asked.done(refused_of(
        asked.owner, Refusal::no_pod_on_node,
        fmt::format("no unfinished Pod of service account {} is on node {}, where the agent {}/{} is",
                    quoted(id), node, asked.owner.ns, asked.owner.pod_name)));
  });
}

}  // namespace nodemesh::controller

#include "controller/pod_marks.h"

#include <unordered_map>

#include "base/log.h"
#include "controller/time_text.h"

namespace nodemesh::controller {
namespace {

using Outcome = PacedWrites::Outcome;
using translate::Enrolment;

Condition no(std::string reason, std::string message) {
  return {.holds = false, .reason = std::move(reason), .message = std::move(message)};
}

// By uid, of these nodes: does the slice say mesh?
std::unordered_map<std::string_view, bool> said_of(const kube::Store& store,
                                                   const std::set<std::string>& nodes) {
  std::unordered_map<std::string_view, bool> out;
  for (const auto& newest : store.newest("WorkloadSlice")) {
    const auto* spec = static_cast<const translate::WorkloadSliceSpec*>(newest.decoded);
    if (!spec || !nodes.contains(spec->node)) continue;
    for (const auto& pod : spec->pods) out.emplace(pod.uid, pod.mesh);
  }
  return out;
}

}  // namespace

std::optional<Condition> wanted_mark(const PodCard& pod, Enrolment enrolment, std::string_view handler,
                                     const NodeWord& word) {
  switch (enrolment) {
    case Enrolment::unwanted:
      if (!pod.mark) return std::nullopt;
      return no("NotLabelled", "No label wants the Pod in the mesh.");
    case Enrolment::host_network:
      return no("HostNetwork", "The Pod uses the node's network, which is never in the mesh.");
    case Enrolment::sidecar:
      return no("Sidecar",
                "The Pod has an Istio sidecar; fix: remove the sidecar, or label the Pod "
                "istio.io/dataplane-mode=none");
    case Enrolment::runtime:
      return no("RuntimeClass",
                "The Pod runs with handler \"" + std::string(handler) +
                    "\", which keeps its sockets from the kernel; fix: use a RuntimeClass with "
                    "handler runc or crun");
    case Enrolment::enrolled:
      break;
  }
  if (word.agentless)
    return no("NoAgent", "Node " + pod.node +
                             " has no nodemesh agent, so the Pod speaks plaintext; fix: let the DaemonSet of "
                             "the agents run there (nodeSelector, affinity, tolerations)");
  if (word.agent && word.mesh == true)
    return Condition{.holds = true,
                     .reason = "Enrolled",
                     .message = "The agent on node " + pod.node + " has the Pod in the mesh."};
  return std::nullopt;
}

std::optional<bool> wanted_redirection(const PodCard& pod, const Condition& mark, const NodeWord& word) {
  if (mark.holds) return true;
  // One that leaves the mesh; on a node that has no agent a ztunnel may serve it.
  if (word.agent && pod.redirected && pod.mark && pod.mark->holds) return false;
  return std::nullopt;
}

PodMarks::PodMarks(io::Reactor& reactor, const Clock& clock, Api& api, const NodePods& pods,
                   Agentless agentless, bool interop_istio, PacedWrites::Settings pace)
    : clock_(clock),
      api_(api),
      pods_(pods),
      agentless_(std::move(agentless)),
      interop_istio_(interop_istio),
      writes_(reactor, clock, pace, [this](const auto& key, auto done) { write(key, std::move(done)); }) {}

void PodMarks::update(const kube::Store& store, const std::set<std::string>& nodes) {
  auto said = said_of(store, nodes);
  for (const auto& node : nodes) {
    NodeWord word{.agent = pods_.has_agent(node), .agentless = agentless_(node), .mesh = {}};
    for (const PodCard* pod : pods_.on(node)) {
      auto found = said.find(pod->uid);
      word.mesh = found == said.end() ? std::nullopt : std::optional(found->second);
      judge(store, *pod, word);
    }
  }
}

void PodMarks::judge(const kube::Store& store, const PodCard& pod, NodeWord word) {
  const auto* ns = store.find("Namespace", "", pod.ns);
  auto mode = pod.common->labels.find(translate::kDataplaneMode);
  const std::string* handler = translate::runtime_handler(store, pod.runtime_class);
  std::string_view runtime = handler ? *handler : std::string_view();
  auto enrolment = translate::judge_enrolment(
      {.pod_mode = mode == pod.common->labels.end() ? std::string_view() : mode->second,
       .namespace_mode = ns ? ns->object->label(translate::kDataplaneMode) : std::string_view(),
       .host_network = pod.host_network,
       .sidecar = pod.sidecar,
       .handler = runtime});
  auto mark = wanted_mark(pod, enrolment, runtime, word);
  PacedWrites::Key key{pod.ns, "Pod", pod.name};
  Wanted wanted{pod.uid, mark.value_or(Condition{}), {}};
  if (mark && interop_istio_) wanted.redirection = wanted_redirection(pod, *mark, word);
  if (!mark || wanted.stands_on(pod)) {
    wanted_.erase(key);
    return writes_.forget(key);
  }
  wanted_.insert_or_assign(key, std::move(wanted));
  writes_.want(key);
}

void PodMarks::write(const PacedWrites::Key& key, PacedWrites::Done done) {
  const auto& [ns, kind, name] = key;
  auto wanted = wanted_.find(key);
  const PodCard* pod = pods_.find(ns, name);
  if (wanted == wanted_.end() || !pod || pod->uid != wanted->second.uid || wanted->second.stands_on(*pod)) {
    wanted_.erase(key);
    return done(Outcome::nothing);
  }
  const Condition& mark = wanted->second.mark;
  Json condition = condition_json(kEnrolled, mark, write_time(clock_.wall()));
  // The patch is merged by type: what is left out stays.
  if (pod->mark && pod->mark->holds == mark.holds) condition.erase("lastTransitionTime");
  Json body = {{"metadata", {{"uid", pod->uid}}}, {"status", {{"conditions", Json::array({condition})}}}};
  if (auto redirection = wanted->second.redirection)
    body["metadata"]["annotations"][kRedirection] = *redirection ? Json("enabled") : Json();
  std::string path =
      "/api/v1/namespaces/" + kube::percent_encode(ns) + "/pods/" + kube::percent_encode(name) + "/status";
  api_.patch(Api::Patch::strategic, std::move(path), dump(body),
             [this, alive = std::weak_ptr(alive_), key, said = wanted->second,
              done = std::move(done)](const ApiReply& reply) mutable {
               if (!alive.expired()) done(on_written(key, said, reply));
             });
}

PacedWrites::Outcome PodMarks::on_written(const PacedWrites::Key& key, const Wanted& said,
                                          const ApiReply& reply) {
  auto wanted = wanted_.find(key);
  bool still = wanted != wanted_.end() && wanted->second == said;
  // Gone, or replaced by another of its name.
  if (reply.not_found() || reply.conflict()) {
    if (still) wanted_.erase(wanted);
    return Outcome::nothing;
  }
  if (!reply.ok()) {
    if (reply.error != trouble_)
      log::warn(log::Component::controller, "the status of a Pod cannot be written", {{"why", reply.error}});
    trouble_ = reply.error;
    return Outcome::again;
  }
  trouble_.clear();
  if (still) wanted_.erase(wanted);
  return Outcome::done;
}

}  // namespace nodemesh::controller

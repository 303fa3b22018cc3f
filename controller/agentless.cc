#include "controller/agentless.h"

#include <algorithm>

#include "base/log.h"

namespace nodemesh::controller {
namespace {

model::Shared<model::Workload> workload_of(const PodCard& pod, bool mesh) {
  model::Workload out{.uid = pod.uid,
                      .ns = pod.ns,
                      .name = pod.name,
                      .service_account = pod.common->service_account,
                      .node = pod.node,
                      .addresses = pod.addresses,
                      .labels = pod.common->labels};
  out.workload_type = pod.common->owner_type;
  out.workload_name = pod.common->owner_name;
  out.host_network = pod.host_network;
  out.mesh = mesh ? model::Mesh::hbone : model::Mesh::none;
  return std::make_shared<const model::Workload>(std::move(out));
}

}  // namespace

AgentlessNodes::AgentlessNodes(io::Reactor& reactor, const Clock& clock, Api& api, const NodePods& pods,
                               Settings settings, OnNode on_node)
    : reactor_(reactor),
      clock_(clock),
      api_(api),
      pods_(pods),
      settings_(settings),
      on_node_(std::move(on_node)) {}

void AgentlessNodes::update(const kube::Store& store) {
  store_ = &store;
  drop_others(store);
  Said said = this->said(store);
  Monotonic::duration wait = Monotonic::duration::max();
  size_t begun = 0;
  for (const auto& entry : store.objects("Node")) {
    const std::string& name = entry.object->key.name;
    if (pods_.has_agent(name)) continue;
    auto [at, fresh] = nodes_.try_emplace(name, clock_.now(), nullptr);
    Node& node = at->second;
    if (!node.publisher) {
      if (!due(node, said.contains(name), wait)) continue;
      if (++begun > settings_.begin_at_once) {
        wait = std::min<Monotonic::duration>(wait, milliseconds(100));
        continue;
      }
      log::info(log::Component::controller, "the node has no agent; its WorkloadSlices are written here",
                {{"node", name}});
      node.publisher =
          std::make_unique<translate::SlicePublisher>(reactor_, static_cast<SliceApi&>(*this), name);
      on_node_(name);
    }
    publish(name, node, store, said);
  }
  if (wait != Monotonic::duration::max()) timer_.arm(reactor_, std::chrono::ceil<milliseconds>(wait));
}

// Nodes that are gone, and those that have an agent.
void AgentlessNodes::drop_others(const kube::Store& store) {
  std::vector<std::string> ceased;
  std::erase_if(nodes_, [&](const auto& entry) {
    bool agent = pods_.has_agent(entry.first);
    if (!agent && store.find("Node", "", entry.first)) return false;
    if (entry.second.publisher) {
      writes_before_ += entry.second.publisher->writes();
      log::info(log::Component::controller,
                agent ? "the node has an agent, which writes its WorkloadSlices from now on"
                      : "the node without an agent is gone",
                {{"node", entry.first}});
      ceased.push_back(entry.first);
    }
    return true;
  });
  for (const auto& name : ceased) on_node_(name);
}

AgentlessNodes::Said AgentlessNodes::said(const kube::Store& store) const {
  Said out;
  for (const auto& newest : store.newest("WorkloadSlice")) {
    const auto* spec = static_cast<const translate::WorkloadSliceSpec*>(newest.decoded);
    if (!spec) continue;
    for (const auto& pod : spec->pods) {
      if (pod.mesh) out[spec->node].insert(pod.uid);
    }
  }
  return out;
}

bool AgentlessNodes::due(const Node& node, bool meshed, Monotonic::duration& wait) const {
  auto left = node.since + (meshed ? settings_.meshed : settings_.plain) - clock_.now();
  if (left <= Monotonic::duration(0)) return true;
  wait = std::min(wait, left);
  return false;
}

bool AgentlessNodes::meshed(const PodCard& pod, bool said) {
  if (!settings_.interop_istio) return said;
  if (pod.redirected && !said) redirected_.insert(pod.uid);
  return pod.redirected || (said && !redirected_.contains(pod.uid));
}

void AgentlessNodes::publish(const std::string& name, Node& node, const kube::Store& store,
                             const Said& said) {
  auto meshed = said.find(name);
  std::vector<model::Shared<model::Workload>> pods;
  for (const PodCard* pod : pods_.on(name))
    pods.push_back(
        workload_of(*pod, this->meshed(*pod, meshed != said.end() && meshed->second.contains(pod->uid))));
  node.publisher->observe(store);
  node.publisher->set_pods(std::move(pods));
}

void AgentlessNodes::call(Verb verb, const std::string& name, std::string body, Done done) {
  auto request = translate::slice_request(verb, name, std::move(body));
  api_.call(request.verb, std::move(request.path), std::move(request.body),
            [alive = std::weak_ptr(alive_), done = std::move(done)](ApiReply reply) mutable {
              if (alive.expired()) return;
              bool said = reply.status != 0 && reply.ok();
              done({.status = reply.status, .body = said ? std::move(reply.body) : std::move(reply.error)});
            });
}

bool AgentlessNodes::agentless(const std::string& node) const {
  auto found = nodes_.find(node);
  return found != nodes_.end() && found->second.publisher != nullptr;
}

size_t AgentlessNodes::size() const {
  return static_cast<size_t>(
      std::ranges::count_if(nodes_, [](const auto& entry) { return entry.second.publisher != nullptr; }));
}

uint64_t AgentlessNodes::writes() const {
  uint64_t out = writes_before_;
  for (const auto& [name, node] : nodes_) out += node.publisher ? node.publisher->writes() : 0;
  return out;
}

}  // namespace nodemesh::controller

#include "controller/cluster_duties.h"

#include "base/log.h"

namespace nodemesh::controller {
namespace {

constexpr milliseconds kSettle{200};

}  // namespace

struct ClusterDuties::Watching {
  explicit Watching(ClusterDuties& duties)
      : policies(duties.reactor_, duties.clock_, duties.api_, duties.events_, duties.settings_.translate),
        agentless(duties.reactor_, duties.clock_, duties.api_, duties.pods_, duties.settings_.agentless,
                  [this, &duties](const std::string& node) {
                    nodes.insert(node);
                    duties.timer_.arm(duties.reactor_, kSettle);
                  }),
        marks(
            duties.reactor_, duties.clock_, duties.api_, duties.pods_,
            [this](const std::string& node) { return agentless.agentless(node); },
            duties.settings_.interop_istio),
        cluster(duties.reactor_, duties.clock_, duties.settings_.access, translate::kinds(),
                options(duties)) {}

  static kube::ClusterOptions options(ClusterDuties& duties) {
    return {.root_namespace = duties.settings_.translate.mesh_config_namespace,
            .only_kinds = {"Namespace", "Node", "Service", "ConfigMap", "RuntimeClass", "WorkloadSlice",
                           "PeerAuthentication", "AuthorizationPolicy", "DestinationRule"},
            .on_object = [&duties](const kube::Object& object) { duties.note(object); },
            .on_gone = [&duties](const kube::ObjectKey& key) { duties.forget(key); }};
  }

  PolicyStatuses policies;
  AgentlessNodes agentless;
  PodMarks marks;
  std::set<std::string> nodes;  // whose Pods' marks are to be looked at
  bool all_nodes = true;
  kube::Cluster cluster;
};

ClusterDuties::ClusterDuties(io::Reactor& reactor, const Clock& clock, Api& api, EventPoster& events,
                             NodePods& pods, Settings settings)
    : reactor_(reactor),
      clock_(clock),
      api_(api),
      events_(events),
      pods_(pods),
      settings_(std::move(settings)) {}

ClusterDuties::~ClusterDuties() = default;

void ClusterDuties::begin() {
  if (watching_) return;
  watching_ = std::make_unique<Watching>(*this);
  auto started = watching_->cluster.start([this] { update(); });
  if (!started) log::error(log::Component::controller, started.error().message);
}

void ClusterDuties::end() {
  timer_.cancel();
  watching_.reset();
}

void ClusterDuties::pods_changed(bool complete) {
  pods_complete_ = complete;
  if (watching_ && complete && !timer_.armed()) timer_.arm(reactor_, kSettle);
}

void ClusterDuties::note(const kube::Object& object) {
  watching_->policies.note(object);
  note_kind(object.key);
}

void ClusterDuties::forget(const kube::ObjectKey& key) {
  watching_->policies.forget(key);
  note_kind(key);
}

// On what marks depend.
void ClusterDuties::note_kind(const kube::ObjectKey& key) {
  if (key.kind == "WorkloadSlice") watching_->nodes.insert(key.name.substr(0, key.name.rfind('-')));
  if (key.kind == "Namespace" || key.kind == "RuntimeClass") watching_->all_nodes = true;
}

void ClusterDuties::update() {
  if (!watching_ || !watching_->cluster.synced()) return;
  Watching& now = *watching_;
  const kube::Store& store = now.cluster.store();
  now.policies.update(store);
  if (!pods_complete_) return;
  auto changed = pods_.take_changed();
  now.agentless.update(store);
  now.nodes.merge(changed);
  if (std::exchange(now.all_nodes, false)) {
    for (const auto& name : pods_.nodes()) now.nodes.insert(name);
  }
  now.marks.update(store, std::exchange(now.nodes, {}));
}

ClusterDuties::Figures ClusterDuties::figures() const {
  if (!watching_) return {};
  return {.agentless_nodes = watching_->agentless.size(),
          .slice_writes = watching_->agentless.writes(),
          .status_writes = watching_->policies.writes(),
          .mark_writes = watching_->marks.writes()};
}

}  // namespace nodemesh::controller

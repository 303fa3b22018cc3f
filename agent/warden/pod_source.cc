#include "warden/pod_source.h"

#include "kube/store.h"
#include "model/snapshot.h"
#include "translate/translate.h"
#include "warden/own_daemonset.h"

namespace nodemesh::warden {
namespace {

// In memory, three times for a moment: a node's pods, and the names and labels of all namespaces.
constexpr uint64_t kMaxSnapshot = 16 << 20;

class TranslatedPods final : public PodSource {
 public:
  TranslatedPods(std::unique_ptr<kube::Source> source, std::string node, bool cluster)
      : node_(std::move(node)), source_(std::move(source)), cluster_(cluster) {}
  // `daemonset` borrows from the source.
  void follow(std::unique_ptr<OwnDaemonSet> daemonset) { daemonset_ = std::move(daemonset); }

  Result<> start(Changed changed) override {
    changed_ = std::move(changed);
    if (auto started = source_->start([this] { tell(); }); !started) return started;
    if (daemonset_) daemonset_->start();
    if (source_->synced()) tell();
    return {};
  }
  bool removed() const override { return daemonset_ && daemonset_->deleted(); }

 private:
  // The proxy reports what is wrong with objects; here it is enough that bad ones keep their last good
  // version.
  void tell() {
    snapshot_ =
        translate::translate(source_->store(), snapshot_, {.node = node_, .cluster = cluster_}).snapshot;
    LocalPods pods;
    for (const auto& workload : snapshot_->workloads()) {
      if (workload->node == node_) pods.push_back(workload);
    }
    changed_(std::move(pods));
  }

  const std::string node_;
  std::unique_ptr<kube::Source> source_;
  const bool cluster_;
  std::unique_ptr<OwnDaemonSet> daemonset_;
  Changed changed_;
  std::shared_ptr<const model::Snapshot> snapshot_;
};

}  // namespace

Result<std::unique_ptr<PodSource>> make_pod_source(io::Reactor& reactor, const Clock& clock,
                                                   const kube::SourceChoice& choice, std::string node,
                                                   const std::string& daemonset,
                                                   const std::string& snapshot_file) {
  kube::ClusterOptions options{.node = node,
                               .only_kinds = {"Pod", "Namespace", "RuntimeClass"},
                               .snapshot = {.path = snapshot_file, .max_size = kMaxSnapshot}};
  auto source = kube::make_source(reactor, clock, choice, translate::kinds(), std::move(options));
  if (!source) return std::unexpected(std::move(source.error()));
  kube::ApiClient* client = (*source)->client();
  auto pods = std::make_unique<TranslatedPods>(std::move(*source), std::move(node), client != nullptr);
  if (client != nullptr && !daemonset.empty())
    pods->follow(std::make_unique<OwnDaemonSet>(reactor, *client, client->access().ns, daemonset));
  return pods;
}

}  // namespace nodemesh::warden

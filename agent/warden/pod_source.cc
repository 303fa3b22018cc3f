#include "warden/pod_source.h"

#include "kube/folder.h"
#include "kube/store.h"
#include "model/snapshot.h"
#include "translate/translate.h"

namespace nodemesh::warden {
namespace {

class FolderSource final : public PodSource {
 public:
  FolderSource(io::Reactor& reactor, std::string folder, std::string node)
      : node_(std::move(node)),
        store_(translate::kinds()),
        folder_(reactor, std::move(folder), store_, [this] { tell(); }) {}

  Result<> start(Changed changed) override {
    changed_ = std::move(changed);
    if (auto started = folder_.start(); !started) return started;
    tell();
    return {};
  }

 private:
  // The proxy reports what is wrong with objects; here it is enough that bad ones keep their last good
  // version.
  void tell() {
    snapshot_ = translate::translate(store_, snapshot_, {.node = node_}).snapshot;
    LocalPods pods;
    for (const auto& workload : snapshot_->workloads()) {
      if (workload->node == node_) pods.push_back(workload);
    }
    changed_(std::move(pods));
  }

  const std::string node_;
  kube::Store store_;
  kube::Folder folder_;
  Changed changed_;
  std::shared_ptr<const model::Snapshot> snapshot_;
};

}  // namespace

std::unique_ptr<PodSource> make_folder_source(io::Reactor& reactor, std::string folder, std::string node) {
  return std::make_unique<FolderSource>(reactor, std::move(folder), std::move(node));
}

}  // namespace nodemesh::warden

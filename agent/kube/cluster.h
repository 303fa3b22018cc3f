// Configuration from an API server: one watch for each kind, into one Store. Changes are told together, 100
// ms after the last and at most 500 ms after the first; the first time when every watch has synced. Pods are
// those of this node only, ConfigMaps only the mesh configuration's. The names of CRDs are watched too, so
// that a kind whose CRD comes later is read at once. Where a file for it is named, all that is read is also
// written down (snapshot_journal.h), and an API server that cannot be read at the start is replaced by what
// an earlier process wrote, until it can. Lives on the reactor's thread.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kube/api_client.h"
#include "kube/snapshot_journal.h"
#include "kube/source.h"
#include "kube/watch.h"

namespace nodemesh::kube {

struct ClusterOptions {
  std::string node;                             // Pods, if they are read, are those with this spec.nodeName
  std::string root_namespace = "istio-system";  // of the ConfigMap `istio` (MeshConfig)
  std::vector<std::string> only_kinds;          // empty: all of the table
  bool watch_crds = true;                       // needs list and watch on customresourcedefinitions
  WatchTimes watch_times;
  ApiTimes api_times;
  milliseconds settle{100}, settle_at_most{500};
  // For who needs more of an object than its reader makes of it: each, whole, before it goes into the store,
  // and each that is gone. They run on the reactor, outside of `changed`.
  std::function<void(const Object&)> on_object;
  std::function<void(const ObjectKey&)> on_gone;
  JournalOptions snapshot;               // no path: nothing is kept
  milliseconds snapshot_after{2'500};    // of silence at the start what is kept serves
  milliseconds snapshot_latest{15'000};  // so it does then whatever the server says, unless all is read
};

class Cluster final : public Source {
 public:
  // `reactor`, `clock` and `kinds` outlive it.
  Cluster(io::Reactor& reactor, const Clock& clock, Access access, std::span<const Kind> kinds,
          ClusterOptions options);
  ~Cluster() override;

  Result<> start(Changed changed) override;
  const Store& store() const override { return store_; }
  bool synced() const override { return unsynced_ == 0; }
  std::vector<std::string> troubles() const override;
  std::optional<Monotonic::duration> age() const override;

  Origin origin() const override;
  std::string snapshot_problem() const override;

  ApiClient* client() override { return &client_; }
  // One for each kind, in the table's order.
  std::vector<std::pair<std::string, WatchProgress>> progress() const;
  // Every watch of `kind` has told everything up to a moment at or after `since`: a bookmark or an event
  // came, or a list was made, later than that.
  bool passed(std::string_view kind, Monotonic::time_point since) const;

 private:
  class Mirror;
  class Crds;

  void note_change();
  void note_synced();
  void note_caught_up();
  void tell();
  bool serves_snapshot() const;
  Mirror* mirror_of(const SnapshotRecord& record) const;
  SnapshotHeader header() const;
  void start_journal();
  void consider_snapshot();
  Result<> load_snapshot();
  void adopt(std::string_view payload);

  io::Reactor& reactor_;
  const Clock& clock_;
  const ClusterOptions options_;
  ApiClient client_;
  Store store_;
  std::vector<std::unique_ptr<Mirror>> mirrors_;
  std::unique_ptr<Crds> crds_;
  std::optional<SnapshotJournal> journal_;
  std::string refused_;  // why the file of the process before was not used
  Monotonic::time_point started_{};
  size_t unsynced_ = 0;
  Changed changed_;
  Monotonic::time_point dirty_since_{};
  bool dirty_ = false;
  io::Timer settle_timer_;
  io::Timer snapshot_timer_;
};

// Where an agent was told to read: exactly one of the three.
struct SourceChoice {
  std::string folder;
  std::string kubeconfig;  // a file; `context` of it, or its current one
  std::string context;
  bool in_cluster = false;

  bool operator==(const SourceChoice&) const = default;
};
// Says so when it is not one. Names the flags: --config, --kubeconfig, --in-cluster.
Result<> check_choice(const SourceChoice& choice);
// Fails with one sentence for the operator.
Result<std::unique_ptr<Source>> make_source(io::Reactor& reactor, const Clock& clock,
                                            const SourceChoice& choice, std::span<const Kind> kinds,
                                            ClusterOptions options);

}  // namespace nodemesh::kube

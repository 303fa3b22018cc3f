// Whether the DaemonSet that runs this agent was deleted: then its pods do not come back, and what the warden
// put into the kernel goes with it. An upgrade deletes pods too, but not the DaemonSet. The watch hears of it
// before the rights to ask are gone. The warden's thread.
#pragma once

#include <string>

#include "kube/watch.h"

namespace nodemesh::warden {

class OwnDaemonSet final : private kube::WatchSink {
 public:
  // `client` outlives it. Needs list and watch on this one object.
  OwnDaemonSet(io::Reactor& reactor, kube::ApiClient& client, const std::string& ns, const std::string& name);
  void start() { watch_.start(); }
  // It was there once, and is gone or on its way out.
  bool deleted() const { return deleted_; }

 private:
  void on_upsert(std::shared_ptr<kube::Object> object) override;
  void on_remove(const kube::ObjectKey& key) override;
  void on_synced() override {}

  bool deleted_ = false;
  kube::Watch watch_;
};

}  // namespace nodemesh::warden

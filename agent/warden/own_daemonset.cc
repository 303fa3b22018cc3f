#include "warden/own_daemonset.h"

#include "base/log.h"

namespace nodemesh::warden {
namespace {

kube::WatchOptions only(const std::string& ns, const std::string& name) {
  return {.resource = {.group = "apps", .versions = {"v1"}, .plural = "daemonsets", .kind = "DaemonSet"},
          .ns = ns,
          .field_selector = "metadata.name=" + name,
          .metadata_only = true};
}

}  // namespace

OwnDaemonSet::OwnDaemonSet(io::Reactor& reactor, kube::ApiClient& client, const std::string& ns,
                           const std::string& name)
    : watch_(reactor, client, static_cast<kube::WatchSink&>(*this), only(ns, name)) {}

void OwnDaemonSet::on_upsert(std::shared_ptr<kube::Object> object) {
  const kube::Node* metadata = object->root.find("metadata");
  deleted_ = metadata != nullptr && metadata->find("deletionTimestamp") != nullptr;
}

void OwnDaemonSet::on_remove(const kube::ObjectKey& key) {
  deleted_ = true;
  log::info(log::Component::warden, "the DaemonSet is gone: at the end everything is taken out of the kernel",
            {{"daemonset", key.ns + "/" + key.name}});
}

}  // namespace nodemesh::warden

// Where configuration comes from: a folder of manifests, or an API server. Owns the Store that it fills.
// Lives on the reactor's thread.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/reason.h"
#include "io/reactor.h"
#include "kube/store.h"

namespace nodemesh::kube {

class ApiClient;

class Source {
 public:
  using Changed = std::move_only_function<void()>;
  virtual ~Source() = default;
  // `changed` runs on the reactor, after this has returned, whenever store() has changed, and not before
  // everything was read once. It may not destroy the source. A folder has read everything when this returns
  // (synced()) and does not call it for that. Fails with one sentence for the operator.
  virtual Result<> start(Changed changed) = 0;
  virtual const Store& store() const = 0;
  // Everything has been read once: before that nothing may be concluded from what is not there.
  virtual bool synced() const = 0;
  // Why not, or what has gone stale, one sentence each.
  virtual std::vector<std::string> troubles() const = 0;
  // How long ago the slowest part was last known to be current; empty for a folder.
  virtual std::optional<Monotonic::duration> age() const = 0;
  // For other requests to the same API server; null for a folder.
  virtual ApiClient* client() { return nullptr; }
};

// Manifests in `path`. `kinds` outlives the source.
std::unique_ptr<Source> make_folder_source(io::Reactor& reactor, std::string path,
                                           std::span<const Kind> kinds);

}  // namespace nodemesh::kube

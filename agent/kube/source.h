// Where configuration comes from: a folder of manifests, or an API server. Owns the Store that it fills.
// Lives on the reactor's thread.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/reason.h"
#include "io/reactor.h"
#include "kube/store.h"

namespace nodemesh::kube {

class ApiClient;

class Source {
 public:
  // `snapshot`: at least one kind is as an earlier process left it, since the API server could not be read.
  enum class Origin : uint8_t { folder, api, snapshot };
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
  virtual Origin origin() const { return Origin::folder; }
  // Why a start without the API server had, or would have, no configuration; empty when nothing is wrong.
  virtual std::string snapshot_problem() const { return {}; }
  // For other requests to the same API server; null for a folder.
  virtual ApiClient* client() { return nullptr; }
};

// Manifests in `path`. `kinds` outlives the source.
std::unique_ptr<Source> make_folder_source(io::Reactor& reactor, std::string path,
                                           std::span<const Kind> kinds);

std::string_view origin_name(Source::Origin origin);  // "folder", "api", "snapshot"

}  // namespace nodemesh::kube

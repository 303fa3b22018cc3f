// Writing and finding nodemesh's own objects at the API server: server-side apply as field manager
// nodemesh-meshctl, deletion, and what there is of ours. Says what it does on `out`. One thread, blocking.
#pragma once

#include <iosfwd>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

#include "ctl/cluster_api.h"

namespace nodemesh::ctl {

// A kind that the chart makes, or the controller at run time.
struct OwnKind {
  const char* kind;
  const char* api_version;
  const char* resource;
  bool namespaced;
};
const OwnKind* find_own_kind(std::string_view kind);

struct OwnObject {
  const OwnKind* kind;
  std::string ns, name;
  auto operator<=>(const OwnObject&) const = default;
  std::string path() const;     // of the object
  std::string text() const;     // "DaemonSet nodemesh-system/nodemesh-agent"
  std::string removal() const;  // the kubectl command
};
// Of an object of a manifest; an error for a kind that the chart does not make.
Result<OwnObject> own_object(const nlohmann::json& manifest);

class Applier {
 public:
  // Both outlive it. With `dry_run` nothing is changed.
  Applier(ClusterApi& api, std::ostream& out, bool dry_run) : api_(api), out_(out), dry_run_(dry_run) {}

  // Creates it, or changes the fields that it names (fieldManager nodemesh-meshctl, forced).
  Result<> apply(const nlohmann::json& object);
  // Creates it where there is none; one that is there is never changed.
  Result<> create_if_absent(const nlohmann::json& object);
  // An object that is not there is no error.
  Result<> remove(const OwnObject& object);
  // Waits until the API server serves the CRD; at most 30 s.
  Result<> wait_established(const std::string& crd);

 private:
  void say(std::string_view what, const OwnObject& object);

  ClusterApi& api_;
  std::ostream& out_;
  const bool dry_run_;
};

// What there is of an installation in `ns`: by label, and by name what carries none. Kinds that are not
// served have none; an error says what could not be looked at.
Result<std::vector<OwnObject>> find_own(ClusterApi& api, const std::string& ns);

}  // namespace nodemesh::ctl

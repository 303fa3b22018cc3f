// What `meshctl check` knows of a cluster: the API server's objects as they came, and the agents' own word.
// Plain values, gathered once (gather_facts, which asks and judges nothing) and then only read: every check
// is a pure function of them. What could not be read says why, so that nothing passes for lack of a right.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

#include "ctl/cluster_api.h"

namespace nodemesh::ctl {

using Json = nlohmann::json;

// One kind's objects. A kind that the API server does not serve has none, which is a fact too.
struct Listing {
  std::vector<Json> items;
  std::string unread;   // why the list is not known; "" when it is
  bool served = false;  // the API server has the kind
};

// One right of the user, as a SelfSubjectAccessReview answers.
struct Right {
  std::string verb, group, resource, name;
  bool allowed = false;
};

// One agent's answers at its admin port; null where it gave none.
struct AgentFacts {
  std::string node, version;
  Json status, certs;
};

struct Facts {
  std::string ns = "nodemesh-system";  // where nodemesh is, or is to be installed
  std::string meshctl_version;
  int64_t now = 0;  // seconds since 1970, by this machine's clock
  Json server;      // GET /version
  // By the names of fact_sources(): "pods", "workloadslices", …
  std::map<std::string, Listing, std::less<>> lists;
  std::vector<Right> rights;
  std::string rights_unread;
  std::vector<AgentFacts> agents;
  std::string agents_unread;
  // Names of the keys in Secret cacerts: their values are never asked for.
  std::vector<std::string> cacerts_keys;
  bool cacerts_exists = false;
  std::string cacerts_unread;

  // The objects of a list; empty for one that is not there.
  const std::vector<Json>& all(std::string_view list) const;
  bool served(std::string_view list) const;
};

// What is listed, and what for: `kind` and `api_version` are put into the items, which come without.
struct FactSource {
  const char* name;  // of the list
  const char* api_version;
  const char* kind;
  const char* resource;    // "pods"
  const char* ns = "";     // one namespace: "." nodemesh's, "*" the root namespace's ConfigMap `istio`
  const char* query = "";  // as "fieldSelector=metadata.name%3Dx"
};
std::vector<FactSource> fact_sources();

struct GatherOptions {
  bool pre = false;  // before an installation: rights are asked for, agents are not
  int64_t now = 0;
  // Asks the agents; may be empty. Fills agents and agents_unread.
  std::function<void(Facts&)> ask_agents;
};
// Never fails: what could not be read says so. The exception is the caller's to make: a server that answers
// nothing at all leaves `server` null and every list unread.
Facts gather_facts(ClusterApi& api, const std::string& ns, const GatherOptions& options);

}  // namespace nodemesh::ctl

// `meshctl check`: from facts to findings. A check has an id that never changes its meaning (docs/checks.md
// lists them) and is a pure function; what it needs and was not read makes it "not checked", never passed.
#pragma once

#include <functional>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "ctl/facts.h"
#include "kube/problem.h"
#include "model/snapshot.h"

namespace nodemesh::ctl {

enum class Severity { error, warning, info };
std::string_view severity_name(Severity severity);

struct Finding {
  std::string id;
  Severity severity = Severity::info;
  std::string object;   // "Pod shop/web", "Node a"
  std::string message;  // what is wrong, one sentence
  std::string hint;     // what to do; names the next command
};

struct NotChecked {
  std::string id;
  std::string why;
};

struct CheckResult {
  std::vector<Finding> findings;  // errors first, then by id and object
  std::vector<NotChecked> not_checked;
  size_t passed = 0;
};

// What the checks share, derived from the facts once: objects by what they are looked up by, and what the
// agents' own translation makes of all of them. Borrows the facts.
class Cluster {
 public:
  explicit Cluster(const Facts& facts);
  Cluster(const Cluster&) = delete;
  Cluster& operator=(const Cluster&) = delete;

  const Facts& facts;
  std::shared_ptr<const model::Snapshot> snapshot;
  std::vector<kube::Status> statuses;

  // The pod as agents see it; null for one that has finished or that they refuse.
  const model::Workload* workload(const Json& pod) const;
  bool enrolled(const Json& pod) const;
  // Whether the pod refuses plaintext at one of its container ports, or anywhere if it names none.
  bool strict(const Json& pod) const;
  bool strict_at(const Json& pod, uint16_t port) const;
  // Pods of namespace `ns` (all, when it is "") that have every label of `selector`.
  std::vector<const Json*> select(std::string_view ns, const Json& selector) const;
  const Json* object(std::string_view list, std::string_view ns, std::string_view name) const;
  std::vector<const Json*> agents() const;  // agent pods in nodemesh's namespace
  const std::string& root_namespace() const;

 private:
  std::map<std::string, std::vector<const Json*>, std::less<>> pods_;  // by namespace
  std::map<std::string, const Json*, std::less<>> objects_;            // by "list/namespace/name"
};

class Found {  // where a check puts what it finds
 public:
  Found(CheckResult& result, const char* id, Severity severity)
      : result_(result), id_(id), severity_(severity) {}
  void operator()(std::string object, std::string message, std::string hint) {
    result_.findings.push_back({id_, severity_, std::move(object), std::move(message), std::move(hint)});
  }

 private:
  CheckResult& result_;
  const char* id_;
  Severity severity_;
};

enum class When { always, pre, installed };  // pre: only with --pre; installed: only without

struct Check {
  const char* id;
  Severity severity;
  When when;
  const char* title;    // what it says when it fires, in general
  const char* explain;  // why it matters and what to do
  // Lists without which it says nothing; "rights", "agents" and "cacerts" name those facts.
  std::vector<const char*> needs;
  void (*run)(const Cluster& cluster, Found& found);
};

// Every check, by id. One table a file: check_cluster.cc, check_node.cc, …
std::vector<Check> checks();
std::span<const Check> cluster_checks();
std::span<const Check> node_checks();
std::span<const Check> install_checks();
std::span<const Check> trust_checks();
std::span<const Check> agent_checks();
std::span<const Check> policy_checks();
std::span<const Check> config_checks();
std::span<const Check> strict_checks();
std::span<const Check> traffic_checks();

CheckResult run_checks(const Facts& facts, bool pre);
// docs/checks.md.
std::string checks_document();

}  // namespace nodemesh::ctl

// Which agents a command talks to, and asking all of them: the nodes of this machine by their sockets, those
// of a cluster through its API server. Commands' thread; the asking uses threads of its own.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

#include "ctl/client.h"
#include "ctl/cluster_api.h"
#include "ctl/context.h"
#include "ctl/port_forward.h"

namespace nodemesh::ctl {

constexpr uint16_t kAdminPort = 15000;              // of an agent, on its pod's loopback
constexpr uint16_t kControllerProcessPort = 15014;  // of a controller

struct Target {
  std::string name;     // the node, or the address given with --admin
  std::string address;  // for http(); or
  std::string pod;      // the agent's, in a cluster
  std::string problem;  // why there is no use in asking: the pod does not run
};

struct Targets {
  std::vector<Target> list;             // by name
  std::optional<kube::Access> cluster;  // where they are pods
};

// --admin; else the cluster that --kubeconfig or --context names; else --run-dir; else $KUBECONFIG's cluster;
// else the nodes that run here; else ~/.kube/config or the pod's service account. Of those, the ones that
// --node names. The error is CONNECT_FAILED where nobody could be asked.
bool asks_a_cluster(const Context& context);
Result<Targets> find_targets(const Context& context);

// The Pods of a component ("agent", "controller") in the mesh's namespace.
Result<std::vector<nlohmann::json>> component_pods(ClusterApi& api, const std::string& ns,
                                                   std::string_view component);
// From the agents' Pods: one target a node, the newest Pod that is not ending.
std::vector<Target> agents_of(const std::vector<nlohmann::json>& pods);
// Leaves those that --node names; a node without an agent is one with a `problem`.
void keep_named(std::vector<Target>& targets, const std::vector<std::string>& names);

// HTTP to a pod's loopback; the API server in production, a function in tests. Called by several threads.
using AskPod = std::function<Result<HttpResponse>(const PodPort&, std::string_view method,
                                                  std::string_view path, milliseconds deadline)>;
AskPod through_api_server(const kube::Access& access);

// Calls `ask` with 0 … count-1, several at a time, and returns when all have returned.
void for_each_at_once(size_t count, const std::function<void(size_t)>& ask);

// Every target's answer, in order, several at a time, within `deadline` each and a minute for all.
std::vector<Result<HttpResponse>> ask_targets(const Context& context, const Targets& targets,
                                              std::string_view method, std::string_view path,
                                              milliseconds deadline = seconds(10));

// The JSON object that a target answered with. The error names the node.
Result<nlohmann::json> read_answer(const Target& target, const Result<HttpResponse>& response,
                                   std::string_view path);

// One agent's answer. `node` is the agent's own word for itself where it gives one.
struct Answer {
  std::string node;
  nlohmann::json body;
};

struct Answers {
  std::vector<Answer> list;
  int exit = kOk;  // not kOk: nothing to show, and it has been said why
};

// Asks every target. Those that do not answer are warnings while another one does; none at all is
// kUnreachable, and so is a node named by --node.
Answers ask(Context& context, std::string_view method, std::string_view path);
// Says why find_targets() found none, and returns the exit code.
int nobody_found(const Context& context, const Error& error);

}  // namespace nodemesh::ctl

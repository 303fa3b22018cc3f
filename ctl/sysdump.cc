#include "ctl/sysdump.h"

#include <unistd.h>

#include <array>
#include <ctime>
#include <ostream>
#include <utility>

#include <fmt/chrono.h>
#include <fmt/format.h>

#include "ctl/archive.h"
#include "ctl/json_at.h"
#include "ctl/scrub.h"
#include "ctl/structured.h"
#include "ctl/views.h"
#include "kube/api_client.h"

namespace nodemesh::ctl {
namespace {

using nlohmann::json;

constexpr size_t kNodesAtOnce = 16;
constexpr int kLogLines = 10'000;
constexpr std::array kAgentPages = {"status",      "version",  "logging",    "listeners",
                                    "workloads",   "services", "policies",   "certs",
                                    "connections", "metrics",  "config_dump"};

struct Collection {
  const char* name;
  const char* path;
};
constexpr std::array<Collection, 18> kClusterWide{{
    {"nodes", "/api/v1/nodes"},
    {"namespaces", "/api/v1/namespaces"},
    {"workloadslices", "/apis/nodemesh.dev/v1alpha1/workloadslices"},
    {"peerauthentications", "/apis/security.istio.io/v1/peerauthentications"},
    {"authorizationpolicies", "/apis/security.istio.io/v1/authorizationpolicies"},
    {"destinationrules", "/apis/networking.istio.io/v1/destinationrules"},
    {"networkpolicies", "/apis/networking.k8s.io/v1/networkpolicies"},
    {"runtimeclasses", "/apis/node.k8s.io/v1/runtimeclasses"},
    {"customresourcedefinitions", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"},
    {"validatingadmissionpolicies", "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies"},
    {"clusterroles",
     "/apis/rbac.authorization.k8s.io/v1/clusterroles?labelSelector=app.kubernetes.io%2Fname%3Dnodemesh"},
    {"clusterrolebindings",
     "/apis/rbac.authorization.k8s.io/v1/"
     "clusterrolebindings?labelSelector=app.kubernetes.io%2Fname%3Dnodemesh"},
    {"pods-by-label", "/api/v1/pods?labelSelector=istio.io%2Fdataplane-mode"},
    {"gatewayclasses", "/apis/gateway.networking.k8s.io/v1/gatewayclasses"},
    {"gateways", "/apis/gateway.networking.k8s.io/v1/gateways"},
    {"httproutes", "/apis/gateway.networking.k8s.io/v1/httproutes"},
    {"serviceentries", "/apis/networking.istio.io/v1/serviceentries"},
    {"referencegrants", "/apis/gateway.networking.k8s.io/v1beta1/referencegrants"},
}};
// Of the mesh's own namespace. No Secrets.
constexpr std::array<Collection, 10> kOwn{{
    {"pods", "/api/v1/namespaces/{}/pods"},
    {"events", "/api/v1/namespaces/{}/events"},
    {"configmaps", "/api/v1/namespaces/{}/configmaps"},
    {"services", "/api/v1/namespaces/{}/services"},
    {"serviceaccounts", "/api/v1/namespaces/{}/serviceaccounts"},
    {"daemonsets", "/apis/apps/v1/namespaces/{}/daemonsets"},
    {"deployments", "/apis/apps/v1/namespaces/{}/deployments"},
    {"replicasets", "/apis/apps/v1/namespaces/{}/replicasets"},
    {"leases", "/apis/coordination.k8s.io/v1/namespaces/{}/leases"},
    {"endpointslices", "/apis/discovery.k8s.io/v1/namespaces/{}/endpointslices"},
}};

// Of a CRD only what tells which versions are served: the schemas are long and well known.
void shorten(std::string_view kind, json& item) {
  if (kind == "nodes" && item.contains("status") && item["status"].is_object())
    item["status"].erase("images");
  if (kind == "pods-by-label") item = pod_outline(item);
  if (kind != "customresourcedefinitions" || !item.contains("spec") || !item["spec"].is_object()) return;
  auto& versions = item["spec"]["versions"];
  if (!versions.is_array()) return;
  for (auto& version : versions) {
    if (version.is_object()) version.erase("schema");
  }
}

bool is_of_the_mesh(std::string_view kind, const json& item) {
  if (kind != "customresourcedefinitions") return true;
  auto group = text_at(item, "/spec/group");
  return group == "nodemesh.dev" || group == "gateway.networking.k8s.io" || group.ends_with("istio.io");
}

class Dump {
 public:
  Dump(Context& context, const SysdumpCluster& cluster, Archive archive, const SysdumpOptions& options)
      : context_(context),
        cluster_(cluster),
        archive_(std::move(archive)),
        left_(static_cast<size_t>(options.max_mib) << 20) {}

  Result<> collect(const std::vector<json>& agents, const std::vector<json>& controllers) {
    context_.progress("collecting: the cluster's objects");
    note_version();
    for (const auto& what : kOwn)
      add_collection(fmt::format("mesh/{}.json", what.name), what.name,
                     fmt::format(fmt::runtime(what.path), kube::percent_encode(context_.ns)));
    for (const auto& what : kClusterWide)
      add_collection(fmt::format("cluster/{}.json", what.name), what.name, what.path);
    for (const auto& ns : enrolled_) {
      add_collection("workloads/" + ns + ".json", "pods-by-label",
                     "/api/v1/namespaces/" + kube::percent_encode(ns) + "/pods");
    }
    add_agents(agents);
    for (const auto& pod : controllers) {
      auto name = text_at(pod, "/metadata/name");
      add_answer("controllers/" + name + "/metrics.txt",
                 cluster_.ask({context_.ns, name, kControllerProcessPort}, "GET", "/metrics", seconds(10)));
    }
    for (const auto* pods : {&controllers, &agents}) {
      for (const auto& pod : *pods) add_logs(pod);
    }
    add_index();
    return failure_ ? std::unexpected(*failure_) : archive_.finish();
  }

  const json& missing() const { return missing_; }

 private:
  void miss(const std::string& name, std::string why) {
    context_.warn(name + " is missing: " + why);
    missing_.push_back({{"file", name}, {"why", scrub(why)}});
  }

  void add(const std::string& name, std::string text) {
    if (failure_) return;
    if (text.size() > left_) return miss(name, "--max-mib is reached");
    auto path = "nodemesh-sysdump/" + name;
    if (!Archive::can_hold(path)) return miss(name, "no file can be called so");
    auto added = archive_.add(path, text);
    if (!added) failure_ = added.error();
    left_ -= text.size();
  }

  void add_object(const std::string& name, json object) {
    scrub_object(object);
    add(name, object.dump(1, ' ', false, json::error_handler_t::replace) + "\n");
  }

  void note_version() {
    auto server = cluster_.api.get("/version");
    if (!server.ok()) miss("the API server's version", server.error);
    add_object("version.json", {{"meshctl", NODEMESH_VERSION}, {"kubernetes", server.body}});
  }

  void add_collection(const std::string& name, std::string_view kind, const std::string& path) {
    if (full()) return miss(name, "--max-mib is reached");
    auto items = cluster_.api.list(path);
    if (!items) {
      bool absent = items.error().message.find("HTTP 404") != std::string::npos;
      return absent ? absent_.push_back(kind) : miss(name, items.error().message);
    }
    std::erase_if(*items, [&](const json& item) { return !is_of_the_mesh(kind, item); });
    for (auto& item : *items) {
      if (kind == "namespaces" && text_at(item, "/metadata/labels/istio.io~1dataplane-mode") == "ambient")
        enrolled_.push_back(text_at(item, "/metadata/name"));
      shorten(kind, item);
    }
    add_object(name, {{"items", std::move(*items)}});
  }

  bool full() const { return left_ < 4096; }

  void add_agents(const std::vector<json>& pods) {
    auto targets = agents_of(pods);
    keep_named(targets, context_.nodes);
    for (size_t from = 0; from < targets.size(); from += kNodesAtOnce) {
      size_t count = std::min(kNodesAtOnce, targets.size() - from);
      context_.progress(
          fmt::format("collecting: nodes {} to {} of {}", from + 1, from + count, targets.size()));
      std::vector<std::vector<Result<HttpResponse>>> answers(count);
      for_each_at_once(count, [&](size_t i) { answers[i] = pages_of(targets[from + i]); });
      for (size_t i = 0; i < count; ++i) add_pages(targets[from + i], answers[i]);
    }
  }

  // One after the other; a node that does not answer the first is not asked the others.
  std::vector<Result<HttpResponse>> pages_of(const Target& target) const {
    std::vector<Result<HttpResponse>> pages;
    if (!target.problem.empty()) return {fail(target.problem)};
    for (const char* page : kAgentPages) {
      pages.push_back(
          cluster_.ask({context_.ns, target.pod, kAdminPort}, "GET", std::string("/") + page, seconds(10)));
      if (!pages.back()) break;
    }
    return pages;
  }

  void add_pages(const Target& target, const std::vector<Result<HttpResponse>>& pages) {
    for (size_t i = 0; i < pages.size(); ++i) {
      bool text = std::string_view(kAgentPages[i]) == "metrics";
      add_answer(fmt::format("nodes/{}/{}.{}", target.name, kAgentPages[i], text ? "txt" : "json"), pages[i]);
    }
  }

  void add_answer(const std::string& name, const Result<HttpResponse>& answer) {
    if (!answer) return miss(name, answer.error().message);
    if (answer->status != 200) return miss(name, fmt::format("HTTP {}", answer->status));
    auto object = parse_json(answer->body);
    object.is_object() ? add_object(name, std::move(object)) : add(name, scrub(answer->body));
  }

  void add_logs(const json& pod) {
    auto name = text_at(pod, "/metadata/name"), node = text_at(pod, "/spec/nodeName");
    if (!context_.nodes.empty() && std::ranges::count(context_.nodes, node) == 0) return;
    context_.progress("collecting: the logs of " + name);
    for (int i = 0;; ++i) {
      auto container = text_at(pod, fmt::format("/spec/containers/{}/name", i));
      if (container.empty()) return;
      add_log(name, container, false);
      if (restarted(pod, container)) add_log(name, container, true);
    }
  }

  static bool restarted(const json& pod, const std::string& container) {
    for (int i = 0;; ++i) {
      auto at = fmt::format("/status/containerStatuses/{}", i);
      auto name = text_at(pod, at + "/name");
      if (name.empty()) return false;
      if (name == container) return number_at(pod, at + "/restartCount") > 0;
    }
  }

  void add_log(const std::string& pod, const std::string& container, bool previous) {
    auto file = fmt::format("logs/{}/{}{}.log", pod, container, previous ? ".previous" : "");
    if (full()) return miss(file, "--max-mib is reached");
    auto text = cluster_.api.text(
        fmt::format("/api/v1/namespaces/{}/pods/{}/log?container={}&timestamps=true&tailLines={}{}",
                    kube::percent_encode(context_.ns), kube::percent_encode(pod),
                    kube::percent_encode(container), kLogLines, previous ? "&previous=true" : ""));
    text ? add(file, scrub(*text)) : miss(file, text.error().message);
  }

  void add_index() {
    json index = {{"schema", 1},
                  {"kind", "sysdump"},
                  {"meshctl", NODEMESH_VERSION},
                  {"missing", missing_},
                  {"not_installed", absent_}};
    left_ += 1 << 20;  // the index itself is always there
    add("index.json", index.dump(1, ' ', false, json::error_handler_t::replace) + "\n");
  }

  Context& context_;
  const SysdumpCluster& cluster_;
  Archive archive_;
  size_t left_;
  json missing_ = json::array(), absent_ = json::array();
  std::vector<std::string> enrolled_;
  std::optional<Error> failure_;
};

// The Pods of a component; none where they may not be read, which the list of the objects says again.
std::vector<json> pods_or_none(Context& context, ClusterApi& api, std::string_view component) {
  auto pods = component_pods(api, context.ns, component);
  if (pods) return *pods;
  context.warn("what the " + std::string(component) + "s know is missing: " + pods.error().message);
  return {};
}

}  // namespace

int sysdump_from(Context& context, const SysdumpCluster& cluster, const SysdumpOptions& options,
                 WallClock::time_point now) {
  if (auto seen = cluster.api.get("/version"); seen.status == 0)
    return cluster_failed(context, error_of(seen));
  auto agents = pods_or_none(context, cluster.api, "agent");
  auto controllers = pods_or_none(context, cluster.api, "controller");
  std::time_t time = WallClock::to_time_t(now);
  auto file = options.file.empty()
                  ? fmt::format("nodemesh-sysdump-{:%Y%m%dT%H%M%SZ}.tar.gz", fmt::gmtime(time))
                  : options.file;
  auto archive = Archive::create(file, now);
  if (!archive) return context.failed(kFailure, archive.error().message, "name another one with -o FILE");
  Dump dump(context, cluster, std::move(*archive), options);
  if (auto done = dump.collect(agents, controllers); !done) {
    ::unlink(file.c_str());
    return context.failed(kFailure, done.error().message, "name a file on another disk with -o FILE");
  }
  json all = {{"schema", 1}, {"kind", "sysdump"}, {"file", file}, {"missing", dump.missing()}};
  if (context.format == Format::json) {
    context.out << to_json_text(all);
  } else if (context.format == Format::yaml) {
    context.out << to_yaml_text(all);
  } else {
    context.out << printable(file) << "\n";
  }
  return context.finish();
}

int sysdump(Context& context, const SysdumpOptions& options) {
  auto access = cluster_access(context);
  if (!access) return cluster_failed(context, access.error());
  auto api = open_cluster(*access);
  return sysdump_from(context, {*api, through_api_server(*access)}, options, Clock().wall());
}

}  // namespace nodemesh::ctl

// `meshctl enroll` and `unenroll`: one label on one object, and then, if wanted, waiting until the agents say
// that the pods' connections go through them.
#include "ctl/enroll.h"

#include <poll.h>

#include <ostream>

#include <fmt/format.h>

#include "base/clock.h"
#include "ctl/commands.h"
#include "ctl/json_at.h"
#include "ctl/structured.h"
#include "ctl/views.h"
#include "kube/api_client.h"

namespace nodemesh::ctl {
namespace {

constexpr int kBetweenRounds = 1000;  // ms

int failed_call(const Context& context, const ClusterReply& reply) {
  if (reply.forbidden())
    return context.failed(kFailure, reply.error, "docs/meshctl.md lists the rights that the command needs");
  if (reply.status == 0)
    return context.failed(kUnreachable, reply.error, "choose the cluster by --kubeconfig and --context");
  return context.failed(kFailure, reply.error,
                        reply.not_found() ? "look at its kind, name and namespace" : "");
}

std::string shown(const std::string& label) {
  return label.empty() ? "(none)" : label;
}

class Enrolment {
 public:
  Enrolment(Context& context, const EnrolmentCluster& cluster, const EnrolOptions& options,
            EnrolmentObject what)
      : context_(context), cluster_(cluster), options_(options), what_(std::move(what)) {}

  int run() {
    if (int exit = read(); exit != kOk) return exit;
    if (int exit = check(); exit != kOk) return exit;
    auto wanted = wanted_label(mode_, options_.enrol);
    if (wanted) {
      if (int exit = patch(*wanted); exit != kOk) return exit;
    }
    tell(wanted);
    if (!options_.wait || options_.dry_run) return context_.finish();
    return wait(wanted);
  }

 private:
  int read() {
    auto reply = cluster_.api.get(what_.path());
    if (!reply.ok()) return failed_call(context_, reply);
    object_ = std::move(reply.body);
    if (what_.kind != "namespace") {
      auto ns = cluster_.api.get("/api/v1/namespaces/" + kube::percent_encode(what_.ns));
      if (!ns.ok()) return failed_call(context_, ns);
      namespace_ = std::move(ns.body);
    }
    mode_ = mode_of(what_, object_, namespace_);
    return kOk;
  }

  int check() {
    if (!options_.enrol) return kOk;
    if ((what_.kind == "namespace" ? what_.name : what_.ns) == context_.ns)
      return context_.failed(kFailure, what_.text() + " is nodemesh's own: it cannot be in the mesh",
                             "choose the namespace of an application");
    const char* host = what_.has_template() ? "/spec/template/spec/hostNetwork" : "/spec/hostNetwork";
    if (text_at(object_, host) == "true")
      return context_.failed(kFailure, what_.text() + " is on its node's network, which is never in the mesh",
                             "take hostNetwork out of its spec");
    return kOk;
  }

  int patch(const std::string& value) {
    auto path = what_.path() + "?fieldManager=meshctl" + (options_.dry_run ? "&dryRun=All" : "");
    auto reply =
        cluster_.api.call(kube::Verb::patch, path, label_patch(what_, value), "application/merge-patch+json");
    return reply.ok() ? kOk : failed_call(context_, reply);
  }

  void tell(const std::optional<std::string>& wanted) {
    nlohmann::json item = {{"object", what_.text()},
                           {"label", kModeLabel},
                           {"from", mode_.own},
                           {"to", wanted.value_or(mode_.own)},
                           {"changed", wanted && !options_.dry_run},
                           {"dry_run", options_.dry_run}};
    nlohmann::json all = {{"schema", 1},
                          {"kind", options_.enrol ? "enroll" : "unenroll"},
                          {"items", nlohmann::json::array({item})}};
    if (context_.format == Format::json) {
      context_.out << to_json_text(all);
    } else if (context_.format == Format::yaml) {
      context_.out << to_yaml_text(all);
    } else if (!wanted) {
      bool inherits = options_.enrol && mode_.own.empty();
      context_.out << printable(fmt::format("{}: nothing to change, it is {} the mesh{}", what_.text(),
                                            options_.enrol ? "in" : "not in",
                                            inherits ? " by its namespace" : ""))
                   << "\n";
    } else {
      context_.out << printable(fmt::format("{}: {} label {}: {} -> {}{}", what_.text(),
                                            options_.dry_run ? "would change" : "changed", kModeLabel,
                                            shown(mode_.own), shown(*wanted),
                                            what_.has_template() ? "; its pods are replaced" : ""))
                   << "\n";
    }
  }

  int wait(const std::optional<std::string>& wanted) {
    std::string namespace_mode =
        what_.kind == "namespace" ? wanted.value_or(mode_.own) : mode_.from_namespace;
    auto until = Monotonic::now() + seconds(options_.timeout_s);
    for (;;) {
      auto progress = look(namespace_mode);
      if (!progress) return context_.failed(kFailure, progress.error().message, "");
      auto counted = fmt::format("{} of {} pods of {} {} the mesh", progress->done, progress->of,
                                 what_.text(), options_.enrol ? "are in" : "have left");
      if (progress->complete()) {
        context_.progress(counted);
        return context_.finish();
      }
      context_.progress("waiting: " + counted + "; " + progress->reason);
      if (Monotonic::now() >= until)
        return context_.failed(kFailure,
                               fmt::format("not done after {} s: {}", options_.timeout_s, progress->reason),
                               "the label stays and the agents go on; `meshctl status` says how they are");
      ::poll(nullptr, 0, kBetweenRounds);
    }
  }

  Result<Progress> look(const std::string& namespace_mode) {
    auto pods = cluster_.api.list(pods_path());
    if (!pods) return std::unexpected(pods.error());
    auto captured = cluster_.captured();
    if (!captured) return std::unexpected(captured.error());
    return enrolment_progress(what_, options_.enrol, namespace_mode, *pods, *captured);
  }

  std::string pods_path() const {
    auto ns = kube::percent_encode(what_.kind == "namespace" ? what_.name : what_.ns);
    auto path = "/api/v1/namespaces/" + ns + "/pods";
    if (what_.kind == "pod")
      return path + "?fieldSelector=" + kube::percent_encode("metadata.name=" + what_.name);
    if (!what_.has_template()) return path;
    auto spec = object_.find("spec");
    auto selector = spec == object_.end() ? nlohmann::json() : spec->value("selector", nlohmann::json());
    return path + "?labelSelector=" + kube::percent_encode(selector_text(selector));
  }

  Context& context_;
  const EnrolmentCluster& cluster_;
  const EnrolOptions& options_;
  const EnrolmentObject what_;
  nlohmann::json object_, namespace_;
  Mode mode_;
};

// The pods that the agents' proxies have listeners for.
Result<std::set<std::string>> captured_pods(const Context& context, const Targets& targets) {
  std::set<std::string> captured;
  auto answers = ask_targets(context, targets, "GET", "/listeners");
  for (const auto& answer : answers) {
    if (!answer) continue;  // its pods stay as waited for
    auto body = parse_json(answer->body);
    if (!body.is_object() || !body.contains("items") || !body["items"].is_array()) continue;
    for (const auto& row : body["items"])
      captured.insert(text_at(row, "/namespace") + "/" + text_at(row, "/workload"));
  }
  return captured;
}

}  // namespace

int enroll_in(Context& context, const EnrolmentCluster& cluster, const EnrolOptions& options,
              const std::vector<std::string>& words) {
  auto what = parse_enrolment_object(words, options.ns);
  if (!what) return context.failed(kUsage, what.error().message, "run `meshctl enroll --help`");
  return Enrolment(context, cluster, options, std::move(*what)).run();
}

int enroll(Context& context, EnrolOptions options, const std::vector<std::string>& words) {
  auto access = cluster_access(context);
  if (!access) return context.failed(kFailure, access.error().message, "choose the cluster by --kubeconfig");
  if (options.ns.empty()) options.ns = access->ns;
  auto api = open_cluster(*access);
  auto captured = [&]() -> Result<std::set<std::string>> {
    auto pods = component_pods(*api, context.ns, "agent");
    if (!pods) return std::unexpected(pods.error());
    return captured_pods(context, {agents_of(*pods), *access});
  };
  return enroll_in(context, {*api, captured}, options, words);
}

}  // namespace nodemesh::ctl

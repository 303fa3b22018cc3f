// `meshctl install` and `meshctl upgrade`.
#include "ctl/install.h"

#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <ostream>
#include <set>

#include <fmt/format.h>

#include "ctl/apply.h"
#include "ctl/check_words.h"
#include "ctl/helm.h"
#include "ctl/json_at.h"
#include "ctl/manifest_json.h"
#include "ctl/manifests.h"
#include "ctl/rollout.h"

namespace nodemesh::ctl {
namespace {

namespace fs = std::filesystem;

// Beside the program, as packages lay it: bin/meshctl and share/nodemesh/.
fs::path shared_file(const std::string& name) {
  std::error_code error;
  auto self = fs::read_symlink("/proc/self/exe", error);
  auto path = self.parent_path().parent_path() / "share/nodemesh" / name;
  return !error && fs::exists(path, error) ? path : fs::path();
}

Result<std::string> read_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::string text{std::istreambuf_iterator<char>(in), {}};
  if (!in) return fail("cannot read " + path);
  return text;
}

int run_helm(Context& context, const InstallOptions& options, const Way& way, const char* verb) {
  std::vector<std::string> words{verb, std::string(kRelease), way.chart};
  for (auto& flag : helm_flags(context)) words.push_back(flag);
  std::string_view values = find_profile(options.profile)->values;
  if (!values.empty()) words.insert(words.end(), {"--values", "-"});
  for (const auto& one : options.set) words.insert(words.end(), {"--set", one});
  if (verb == std::string_view("install")) words.push_back("--create-namespace");
  // What was set before stays, unless another profile or value is asked for; new defaults come in.
  if (verb == std::string_view("upgrade")) words.push_back("--reset-then-reuse-values");
  if (options.dry_run) words.push_back("--dry-run=server");
  context.out << fmt::format("by Helm: {} {}\n", way.helm, fmt::join(words, " ")) << std::flush;
  auto code = run_program(way.helm, words, values);
  if (!code) return context.failed(kFailure, code.error().message, "look at --helm");
  return *code == 0
             ? kOk
             : context.failed(
                   kFailure, fmt::format("Helm ended with code {}", *code),
                   "its words stand above; `meshctl uninstall` takes away what an earlier attempt left");
}

Result<> apply_crds(Applier& applier, const std::vector<nlohmann::json>& objects,
                    const InstallOptions& options) {
  for (const auto& object : objects) {
    if (text_of(object, "kind") != "CustomResourceDefinition") continue;
    if (auto done = applier.apply(object); !done) return done;
    if (auto done = applier.wait_established(text_of(object, "metadata", "name")); !done) return done;
  }
  // Istio's: where they are absent, never changed.
  auto path = options.crds.empty() ? shared_file("istio-crds.yaml").string() : options.crds;
  if (path.empty()) return {};
  auto text = read_file(path);
  if (!text) return std::unexpected(text.error());
  auto crds = json_of_yaml(*text, path);
  if (!crds) return std::unexpected(crds.error());
  for (const auto& crd : *crds) {
    if (text_of(crd, "kind") != "CustomResourceDefinition")
      return fail(path + " holds other things than CRDs");
    if (auto done = applier.create_if_absent(crd); !done) return done;
    if (auto done = applier.wait_established(text_of(crd, "metadata", "name")); !done) return done;
  }
  return {};
}

// What an older version, or another profile, had. What the controller makes carries no label of the chart.
Result<> prune(ClusterApi& api, Applier& applier, const std::vector<nlohmann::json>& objects,
               const std::string& ns) {
  std::set<OwnObject> wanted;
  for (const auto& object : objects) {
    if (auto own = own_object(object)) wanted.insert(*own);
  }
  auto there = find_own(api, ns);
  if (!there) return std::unexpected(there.error());
  for (const auto& object : *there) {
    bool at_run_time = object.kind->kind == std::string_view("Secret") ||
                       object.kind->kind == std::string_view("Lease") || object.name == "nodemesh-root-cert";
    if (wanted.contains(object) || at_run_time) continue;
    if (auto done = applier.remove(object); !done) return done;
  }
  return {};
}

Result<> apply_all(ClusterApi& api, std::ostream& out, const InstallOptions& options, bool upgrading) {
  const std::string ns(kManifestNamespace);
  auto objects = json_of_yaml(find_profile(options.profile)->manifest, options.profile + ".yaml");
  if (!objects) return std::unexpected(objects.error());
  Applier applier(api, out, options.dry_run);
  auto done =
      applier.create_if_absent({{"apiVersion", "v1"}, {"kind", "Namespace"}, {"metadata", {{"name", ns}}}});
  if (done) done = apply_crds(applier, *objects, options);
  for (const auto& object : *objects) {
    if (done && text_of(object, "kind") != "CustomResourceDefinition") done = applier.apply(object);
  }
  return done && upgrading ? prune(api, applier, *objects, ns) : done;
}

int apply_manifests(Context& context, ClusterApi& api, const InstallOptions& options, bool upgrading) {
  context.out << fmt::format("by the manifests of profile {}, without Helm\n", options.profile) << std::flush;
  auto done = apply_all(api, context.out, options, upgrading);
  if (done) return kOk;
  return context.failed(
      kFailure, done.error().message,
      fmt::format(
          "`meshctl check --pre` says what is missing; then `meshctl {}` again: it goes on where it stopped",
          upgrading ? "upgrade" : "install"));
}

int wait_and_tell(Context& context, ClusterApi& api, const InstallOptions& options) {
  if (options.dry_run || options.wait_seconds == 0) return kOk;
  if (auto done = wait_running(context, api, seconds(options.wait_seconds)); !done)
    return context.failed(kFailure, done.error().message,
                          fmt::format("`meshctl check -n {}` says more", context.ns));
  context.out << fmt::format(
      "nodemesh runs in {}. Next:\n  {} check -n {}\n  kubectl label namespace default "
      "istio.io/dataplane-mode=ambient\n",
      context.ns, context.program, context.ns);
  return kOk;
}

int set_up(Context& context, const InstallOptions& options, bool upgrading) {
  if (find_profile(options.profile) == nullptr) {
    std::string names;
    for (const auto& profile : profiles()) names += (names.empty() ? "" : ", ") + std::string(profile.name);
    return context.failed(kUsage, "there is no profile " + options.profile, "use one of " + names);
  }
  auto found = find_installation(context);
  if (!found) return cluster_failed(context, found.error());
  auto& [api, installed] = *found;
  if (!upgrading && installed == Manner::helm)
    return context.failed(kFailure, "Helm has installed nodemesh in " + context.ns + " already",
                          "run `meshctl upgrade`");
  if (upgrading && installed == Manner::none)
    return context.failed(kFailure, "nodemesh is not installed in " + context.ns,
                          "`meshctl install`, or name the namespace: -n NAMESPACE");
  auto way = choose_way(context, options, installed);
  if (!way) return context.failed(kUsage, way.error().message, "see `meshctl install --help`");
  if (!options.dry_run) {
    auto there = wait_not_terminating(context, *api, seconds(std::max(options.wait_seconds, 1)));
    if (!there)
      return context.failed(kFailure, there.error().message,
                            fmt::format("kubectl get namespace {} -o yaml", context.ns));
  }
  int code = way->manner == Manner::helm ? run_helm(context, options, *way, upgrading ? "upgrade" : "install")
                                         : apply_manifests(context, *api, options, upgrading);
  return code == kOk ? wait_and_tell(context, *api, options) : code;
}

}  // namespace

std::vector<std::string> helm_flags(const Context& context) {
  std::vector<std::string> flags{"--namespace", context.ns};
  if (!context.kubeconfig.empty()) flags.insert(flags.end(), {"--kubeconfig", context.kubeconfig});
  if (!context.kube_context.empty()) flags.insert(flags.end(), {"--kube-context", context.kube_context});
  return flags;
}

Result<Manner> installed_manner(ClusterApi& api, const std::string& ns) {
  auto reply = api.get(fmt::format("/apis/apps/v1/namespaces/{}/daemonsets/nodemesh-agent", ns));
  if (reply.not_found()) return Manner::none;
  if (!reply.ok()) return std::unexpected(error_of(reply));
  return text_of(reply.body, "metadata", "annotations", "meta.helm.sh/release-name").empty()
             ? Manner::manifests
             : Manner::helm;
}

Result<Installation> find_installation(const Context& context) {
  auto access = cluster_access(context);
  if (!access) return std::unexpected(access.error());
  Installation found{.api = open_cluster(std::move(*access))};
  auto manner = installed_manner(*found.api, context.ns);
  if (!manner) return std::unexpected(manner.error());
  found.manner = *manner;
  return found;
}

Result<Way> choose_way(const Context& context, const InstallOptions& options, Manner installed) {
  Way way{.helm = options.no_helm ? "" : find_program(options.helm), .chart = options.chart};
  if (way.chart.empty()) way.chart = shared_file(fmt::format("nodemesh-{}.tgz", NODEMESH_VERSION)).string();
  bool can_helm = !way.helm.empty() && !way.chart.empty();
  std::string lack = options.no_helm    ? "--no-helm was given"
                     : way.helm.empty() ? "there is no program " + options.helm
                                        : "no chart is known (--chart)";
  way.manner = installed == Manner::manifests || !can_helm ? Manner::manifests : Manner::helm;
  if (installed == Manner::helm && !can_helm) return fail("Helm has installed this, and " + lack);
  if (way.manner == Manner::helm) return way;
  if (!options.set.empty())
    return fail(installed == Manner::manifests
                    ? "--set needs Helm, and this was installed without it; choose a --profile"
                    : "--set needs Helm: " + lack);
  if (context.ns != kManifestNamespace)
    return fail(fmt::format("without Helm the namespace is {}; for {} Helm is needed: {}", kManifestNamespace,
                            context.ns, lack));
  return way;
}

int install(Context& context, const InstallOptions& options) {
  return set_up(context, options, false);
}

int upgrade(Context& context, const InstallOptions& options) {
  return set_up(context, options, true);
}

}  // namespace nodemesh::ctl

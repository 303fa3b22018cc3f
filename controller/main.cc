// nodemesh-controller: the certificate authority of a mesh, of one folder (--config) or of a Kubernetes
// cluster.
#include <sys/resource.h>
#include <unistd.h>

#include <cstdio>

#include <CLI/CLI.hpp>

#include "base/duration.h"
#include "base/log.h"
#include "controller/cluster.h"
#include "controller/standalone.h"
#include "io/reactor.h"

namespace nodemesh::controller {
namespace {

struct Options {
  StandaloneOptions standalone;
  ClusterOptions cluster;
  bool kubernetes = false;
  std::string kubeconfig, context;
  std::vector<std::string> agents;
  seconds max_lifetime{24 * 3600}, root_lifetime{3650LL * 24 * 3600};
  std::string trust_domain = "cluster.local";
  bool log_json = false;
  std::string log_level = "info";
};

// Checks an option's text and keeps what it says.
auto duration(seconds& out) {
  return [&out](const std::string& text) -> std::string {
    auto parsed = parse_duration(text);
    if (!parsed) return parsed.error().message;
    out = std::chrono::ceil<seconds>(*parsed);
    return "";
  };
}

void add_standalone(CLI::App& app, StandaloneOptions& out) {
  auto* group = app.add_option_group("standalone", "the authority of one folder");
  group->add_option("--config", out.config, "folder of manifests");
  group
      ->add_option_function<std::string>(
          "--listen", [&out](const std::string& text) { out.listen = text.substr(5); },
          "unix:PATH of the gRPC socket")
      ->check([](const std::string& text) {
        return text.starts_with("unix:/") ? "" : "write unix:/absolute/path";
      });
  group->add_option("--state-dir", out.root.state_dir, "directory of the root key, mode 0700");
  group->add_option("--allow-uid", out.allowed_uids, "uids that may connect, besides our own and root's");
  group->add_option("--socket-gid", out.socket_gid, "group of the socket")
      ->check(CLI::Range(int64_t{0}, int64_t{4294967294}));
}

void add_cluster(CLI::App& app, Options& out) {
  ClusterOptions& cluster = out.cluster;
  auto* group = app.add_option_group("kubernetes", "the authority of a cluster");
  group->add_flag("--kubernetes", out.kubernetes,
                  "serve the cluster that this pod, or --kubeconfig, belongs to");
  group->add_option("--kubeconfig", out.kubeconfig, "instead of the pod's service account");
  group->add_option("--context", out.context, "of the kubeconfig");
  group->add_flag("!--without-authority", cluster.authority,
                  "sign nothing: agents have another authority, and only the leader's duties are done here");
  group->add_flag("--interop-istio", cluster.interop_istio,
                  "tell Istio's ztunnels of our pods, and our agents of theirs on nodes without an agent");
  group->add_option("--namespace", cluster.ns,
                    "of Secrets, Lease and ConfigMap; default: the service account's");
  group->add_option("--identity", cluster.identity, "of this replica; default: the host name");
  group->add_option("--agent", out.agents,
                    "NAMESPACE/NAME of a service account that may ask for others' identities; default: "
                    "nodemesh-agent in --namespace");
  group->add_option("--audience", cluster.audience, "that callers' tokens must be for")
      ->capture_default_str();
  group->add_option("--service", cluster.service, "name of our Service, for the server certificate")
      ->capture_default_str();
  group->add_option("--dns-name", cluster.dns_names, "further names for the server certificate");
  group->add_option("--cluster-domain", cluster.cluster_domain, "DNS domain of the cluster")
      ->capture_default_str();
  group->add_option("--root-namespace", cluster.root_namespace, "of the ConfigMap istio (MeshConfig)")
      ->capture_default_str();
  group->add_option("--lease", cluster.lease, "name of the Lease that replicas lead by")
      ->capture_default_str();
  group->add_option("--ca-secret", cluster.ca_secret, "Secret of the authority's state")
      ->capture_default_str();
  group->add_option("--plugged-secret", cluster.plugged_secret, "Secret of a plugged-in authority")
      ->capture_default_str();
  group->add_option("--trust-bundle", cluster.trust_bundle, "ConfigMap of the roots")->capture_default_str();
  group->add_option("--ca-listen", cluster.ca_listen, "address of the gRPC port")->capture_default_str();
  group->add_option("--admin-listen", cluster.admin_listen, "address of metrics and health")
      ->capture_default_str();
  group
      ->add_option_function<std::string>(
          "--rotation-overlap", [](const std::string&) {},
          "from the announcement of a root to its use; at least --max-lifetime, e.g. 24h")
      ->check(duration(cluster.overlap));
  group
      ->add_option_function<std::string>(
          "--refresh", [](const std::string&) {}, "how often the Secrets are read, e.g. 10s")
      ->check(duration(cluster.refresh));
}

void add_common(CLI::App& app, Options& out) {
  app.add_option("--trust-domain", out.trust_domain, "trust domain of every identity")->capture_default_str();
  app.add_option_function<std::string>(
         "--max-lifetime", [](const std::string&) {}, "longest certificate, e.g. 24h")
      ->check(duration(out.max_lifetime));
  app.add_option_function<std::string>(
         "--root-lifetime", [](const std::string&) {}, "of a root made now, e.g. 3650d")
      ->check(duration(out.root_lifetime));
  app.add_option("--log-level", out.log_level, "debug, info, warn, error or off")->capture_default_str();
  app.add_flag("--log-json", out.log_json, "log as JSON lines");
}

Result<> complete_cluster(Options& options) {
  ClusterOptions& cluster = options.cluster;
  auto access = options.kubeconfig.empty()
                    ? kube::in_cluster_access()
                    : kube::kubeconfig_access({.path = options.kubeconfig, .context = options.context});
  if (!access) return std::unexpected(access.error());
  cluster.access = std::move(*access);
  if (cluster.ns.empty()) cluster.ns = cluster.access.ns;
  char host[256] = {};
  if (cluster.identity.empty() && ::gethostname(host, sizeof host - 1) == 0) cluster.identity = host;
  if (cluster.identity.empty())
    return fail("--identity: this machine has no host name; give one, unique per replica");
  if (options.agents.empty()) options.agents.push_back(cluster.ns + "/nodemesh-agent");
  for (const std::string& agent : options.agents) {
    size_t slash = agent.find('/');
    if (slash == 0 || slash == agent.npos || slash + 1 == agent.size() ||
        agent.find('/', slash + 1) != agent.npos)
      return fail("--agent " + agent + ": write NAMESPACE/NAME of a service account");
    cluster.agents.emplace(agent.substr(0, slash), agent.substr(slash + 1));
  }
  cluster.trust_domain = options.trust_domain;
  cluster.max_lifetime = options.max_lifetime;
  cluster.root_lifetime = options.root_lifetime;
  return {};
}

Result<> run(Options& options) {
  io::Reactor reactor;
  Clock clock;
  if (options.kubernetes) {
    if (!options.standalone.config.empty())
      return fail(
          "--kubernetes and --config exclude each other: objects come from a cluster or from a folder");
    if (auto complete = complete_cluster(options); !complete) return complete;
    return run_cluster(reactor, clock, options.cluster);
  }
  StandaloneOptions& standalone = options.standalone;
  if (standalone.config.empty() || standalone.listen.empty() || standalone.root.state_dir.empty())
    return fail("--config, --listen and --state-dir are required, or --kubernetes; see --help");
  standalone.root.trust_domain = options.trust_domain;
  standalone.root.root_lifetime = options.root_lifetime;
  standalone.max_lifetime = options.max_lifetime;
  return run_standalone(reactor, clock, standalone);
}

}  // namespace
}  // namespace nodemesh::controller

int main(int argc, char** argv) {
  using namespace nodemesh;
  controller::Options options;
  CLI::App app("nodemesh-controller: the certificate authority of a mesh");
  controller::add_common(app, options);
  controller::add_standalone(app, options.standalone);
  controller::add_cluster(app, options);
  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp& help) {
    return app.exit(help);
  } catch (const CLI::ParseError& error) {
    std::fprintf(stderr, "nodemesh-controller: %s; see nodemesh-controller --help\n", error.what());
    return 2;
  }

  auto level = log::parse_level(options.log_level);
  if (!level) {
    std::fprintf(stderr, "nodemesh-controller: --log-level: use debug, info, warn, error or off\n");
    return 2;
  }
  for (int i = 0; i < static_cast<int>(log::Component::count); ++i)
    log::set_level(static_cast<log::Component>(i), *level);
  log::set_json(options.log_json);
  rlimit no_core{0, 0};
  ::setrlimit(RLIMIT_CORE, &no_core);  // a core file would hold the root's key
  if (auto done = controller::run(options); !done) {
    std::fprintf(stderr, "nodemesh-controller: %s\n", done.error().message.c_str());
    return 1;
  }
  return 0;
}

// nodemesh-proxy: the unprivileged process that carries all traffic of a node. The first process of its
// container is a small supervisor; the second, which this file calls the worker process, gives up every right
// before it reads a byte.
#include <signal.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>

#include <atomic>
#include <future>
#include <thread>

#include <fmt/format.h>
#include <CLI/CLI.hpp>

#include "admin/server.h"
#include "app/ca_options.h"
#include "app/proxy_sources.h"
#include "app/sandbox.h"
#include "app/supervisor.h"
#include "base/duration.h"
#include "base/log.h"
#include "proxy/control.h"

namespace nodemesh::app {
namespace {

struct ProxyConfig {
  proxy::ControlOptions control;
  CaOptions ca;
  std::string cert_lifetime = "24h";
  std::vector<std::string> cluster_cidrs;
  std::string log_format = "text";
  uint16_t metrics_port = 15020, ready_port = 15021, admin_port = 15000;
  uid_t uid = kProxyUser;
  uint32_t ping_interval_ms = 10'000, ping_timeout_ms = 20'000, tunnel_idle_ms = 60'000;
  uint32_t connection_idle_ms = 3'600'000, stream_idle_ms = 300'000, held_mib = 256;
  bool supervised = false;
};

int cannot_start(const std::string& why) {
  fmt::print(stderr, "nodemesh-proxy: {}\n", why);
  return kCannotStart;
}

void add_ca_options(CLI::App& app, CaOptions& ca) {
  app.add_option("--ca", ca.socket, "the certificate authority's socket")
      ->capture_default_str()
      ->type_name("unix:PATH");
  app.add_option("--ca-address", ca.address,
                 "instead of --ca: an authority that speaks Istio's protocol over TLS")
      ->type_name("HOST:PORT");
  app.add_option("--ca-root", ca.root_file, "roots that vouch for --ca-address; may change at any time")
      ->type_name("FILE");
  app.add_option("--ca-server-name", ca.server_name,
                 "name in its certificate; default: the host of --ca-address");
  app.add_option("--ca-token-file", ca.token_file,
                 "our token for it (audience istio-ca); may change at any time")
      ->type_name("FILE");
  app.add_option("--ca-cluster-id", ca.cluster_id, "sent to it as `clusterid`");
}

void add_options(CLI::App& app, ProxyConfig& config) {
  auto& source = config.control.source;
  app.add_option("--config", source.folder, "folder of manifests")->type_name("DIR");
  app.add_option("--kubeconfig", source.kubeconfig, "or the API server that this file names")
      ->type_name("FILE");
  app.add_option("--context", source.context, "of the kubeconfig, else its current one")->type_name("NAME");
  app.add_flag("--in-cluster", source.in_cluster, "or the API server of the pod this runs in");
  app.add_option("--snapshot", config.control.snapshot_file,
                 "keep there what the API server says, for a start while it is away")
      ->type_name("FILE");
  app.add_option("--node", config.control.node, "name of this node")->required()->type_name("NAME");
  app.add_option("--run-dir", config.control.run_dir, "where the warden's socket lies")
      ->required()
      ->type_name("DIR");
  app.add_option("--workers", config.control.workers, "worker threads")
      ->check(CLI::Range(1, 64))
      ->capture_default_str();
  add_ca_options(app, config.ca);
  app.add_option("--trust-domain", config.control.trust_domain, "unless MeshConfig names one")
      ->capture_default_str();
  app.add_option(
         "--root-namespace", config.control.root_namespace,
         "of ConfigMap `istio` (MeshConfig), and of policies for all namespaces unless that names another")
      ->capture_default_str();
  app.add_option("--cluster-cidr", config.cluster_cidrs,
                 "addresses of pods, besides the Nodes' spec.podCIDRs; may be repeated")
      ->type_name("CIDR");
  static const std::map<std::string, model::UnknownPeer> kUnknown = {
      {"hold", model::UnknownPeer::hold}, {"plaintext", model::UnknownPeer::plaintext}};
  app.add_option("--unknown-peer", config.control.unknown_peer,
                 "a server that stays unknown for 5 s is refused (hold) or sent plaintext; default hold")
      ->transform(CLI::CheckedTransformer(kUnknown))
      ->type_name("MODE");
  app.add_option("--cert-lifetime", config.cert_lifetime, "asked of the authority, e.g. 24h or 30s")
      ->capture_default_str();
  app.add_option("--metrics-port", config.metrics_port, "/metrics")->capture_default_str();
  app.add_option("--ready-port", config.ready_port, "/healthz/ready")->capture_default_str();
  app.add_option("--admin-port", config.admin_port, "on loopback only")->capture_default_str();
  app.add_option("--uid", config.uid, "user and group to become")->capture_default_str();
  app.add_option("--ping-interval-ms", config.ping_interval_ms, "HTTP/2 PING on tunnels")
      ->capture_default_str();
  app.add_option("--ping-timeout-ms", config.ping_timeout_ms, "without an answer to PING a tunnel is lost")
      ->capture_default_str();
  app.add_option("--tunnel-idle-ms", config.tunnel_idle_ms, "a tunnel without streams is closed")
      ->capture_default_str();
  app.add_option("--connection-idle-ms", config.connection_idle_ms,
                 "a connection relayed from socket to socket may be silent for so long; 0: for ever")
      ->capture_default_str();
  app.add_option("--stream-idle-ms", config.stream_idle_ms,
                 "so may a stream with a peer that is no nodemesh agent; 0: for ever")
      ->capture_default_str();
  app.add_option("--held-mib", config.held_mib, "what connections may hold for peers that do not read")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  app.add_option("--log-format", config.log_format, "text or json")->check(CLI::IsMember({"text", "json"}));
  app.add_flag("--no-supervisor", config.supervised, "this is the supervised process");
}

// The admin thread: metrics, readiness and JSON for meshctl. Its objects live on it from start to end.
class AdminThread {
 public:
  ~AdminThread() { stop(); }
  Result<> start(const ProxyConfig& config, const admin::Sources& sources) {
    std::promise<Result<>> ready;
    auto outcome = ready.get_future();
    thread_ = std::thread([this, &config, sources, &ready] {
      ::prctl(PR_SET_NAME, "admin");
      admin::Server server(reactor, sources);
      auto listening = listen(server, config);
      bool failed = !listening;
      ready.set_value(std::move(listening));
      if (!failed) reactor.run();
    });
    return outcome.get();
  }
  void stop() {
    mailbox.post([this] { reactor.stop(); });
    if (thread_.joinable()) thread_.join();
  }

  io::Reactor reactor;
  io::Mailbox mailbox{reactor};

 private:
  static Result<> listen(admin::Server& server, const ProxyConfig& config) {
    using admin::Surface;
    auto unix_path = "unix:" + config.control.run_dir + "/admin.sock";
    for (auto [surface, address] : {std::pair(Surface::metrics, fmt::format("[::]:{}", config.metrics_port)),
                                    std::pair(Surface::health, fmt::format("[::]:{}", config.ready_port)),
                                    std::pair(Surface::admin, fmt::format("127.0.0.1:{}", config.admin_port)),
                                    std::pair(Surface::admin, unix_path)}) {
      if (auto ok = server.listen(surface, address); !ok) return ok;
    }
    return {};
  }
  std::thread thread_;
};

// SIGTERM drains; a second one stops at once.
class Signals final : private io::EventHandler {
 public:
  Signals(io::Reactor& reactor, std::move_only_function<void(int)> on_signal)
      : reactor_(reactor), on_signal_(std::move(on_signal)) {
    sigset_t set;
    sigemptyset(&set);
    for (int signal : {SIGTERM, SIGINT}) sigaddset(&set, signal);
    ::pthread_sigmask(SIG_BLOCK, &set, nullptr);
    fd_.reset(::signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC));
  }
  ~Signals() { reactor_.remove(fd_.get(), *this, true); }
  Result<> start() { return reactor_.add(fd_.get(), *this, EPOLLIN); }

 private:
  void on_events(uint32_t) override {
    signalfd_siginfo info;
    while (::read(fd_.get(), &info, sizeof info) == sizeof info) on_signal_(static_cast<int>(info.ssi_signo));
  }
  io::Reactor& reactor_;
  std::move_only_function<void(int)> on_signal_;
  Fd fd_;
};

Result<> give_up_rights(const ProxyConfig& config, bool allow_exec) {
  if (auto ok = drop_privileges(config.uid, config.uid); !ok) return ok;
  return restrict_syscalls({.allow_exec = allow_exec});
}

int run_proxy(ProxyConfig& config) {
  ::signal(SIGPIPE, SIG_IGN);
  log::set_json(config.log_format == "json");
  if (auto limit = raise_descriptor_limit(); !limit) return cannot_start(limit.error().message);
  if (auto ok = give_up_rights(config, false); !ok) return cannot_start(ok.error().message);
  if (auto ok = hide_memory(); !ok) return cannot_start(ok.error().message);
  io::Reactor reactor;
  Clock clock;
  // Before any thread exists, so that all of them leave the signals to this one.
  bool stopping = false;
  std::move_only_function<void(int)> on_signal;
  Signals signals(reactor, [&](int signal) { on_signal(signal); });
  AdminThread admin_thread;
  telemetry::Metrics metrics({.version = NODEMESH_VERSION, .shards = config.control.workers}, clock);
  telemetry::Denials denials;
  telemetry::AccessLog access_log(admin_thread.reactor);
  proxy::Control control(reactor, clock, config.control, metrics, access_log, denials);
  on_signal = [&](int) {
    if (std::exchange(stopping, true)) return reactor.stop();
    control.stop([&reactor] { reactor.stop(); });
  };
  if (auto ok = signals.start(); !ok) return cannot_start(ok.error().message);
  if (auto ok = control.start(); !ok) return cannot_start(ok.error().message);
  auto sources = proxy_sources(control, config.control.node, NODEMESH_VERSION, metrics, denials, clock);
  if (auto ok = admin_thread.start(config, sources); !ok) return cannot_start(ok.error().message);
  log::info(log::Component::app, "proxy started",
            {{"node", config.control.node}, {"workers", config.control.workers}});
  reactor.run();
  // A worker may still owe the admin port an answer, so it stops first.
  control.stop_workers();
  admin_thread.stop();
  return 0;
}

}  // namespace
}  // namespace nodemesh::app

int main(int argc, char** argv) {
  using namespace nodemesh::app;
  ProxyConfig config;
  CLI::App app("Carries the traffic of a node's pods: capture, mutual TLS, policy, metrics.",
               "nodemesh-proxy");
  add_options(app, config);
  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp& help) {
    return app.exit(help);
  } catch (const CLI::ParseError& error) {
    cannot_start(fmt::format("{}; see nodemesh-proxy --help", error.what()));
    return kWrongUsage;
  }
  auto lifetime = nodemesh::parse_duration(config.cert_lifetime);
  if (!lifetime) return cannot_start("--cert-lifetime: " + lifetime.error().message);
  for (const std::string& text : config.cluster_cidrs) {
    auto range = nodemesh::Cidr::parse(text);
    if (!range)
      return cannot_start("--cluster-cidr " + text + " is no range: write 10.244.0.0/16 or fd00::/56");
    config.control.cluster_cidrs.push_back(*range);
  }
  auto ca = ca_settings(config.ca);
  if (!ca) return cannot_start(ca.error().message);
  config.control.certificate_lifetime = std::chrono::ceil<nodemesh::seconds>(*lifetime);
  config.control.ca = std::move(*ca);
  config.control.hbone_times.ping_interval = std::chrono::milliseconds(config.ping_interval_ms);
  config.control.hbone_times.ping_timeout = std::chrono::milliseconds(config.ping_timeout_ms);
  config.control.hbone_times.idle = std::chrono::milliseconds(config.tunnel_idle_ms);
  config.control.idle = {.connection = std::chrono::milliseconds(config.connection_idle_ms),
                         .stream = std::chrono::milliseconds(config.stream_idle_ms)};
  config.control.held_limit = size_t{config.held_mib} << 20;
  ::prctl(PR_SET_NAME, "nodemesh-proxy");
  if (config.supervised) return run_proxy(config);
  if (auto ok = give_up_rights(config, true); !ok) return cannot_start(ok.error().message);
  ChildSpec spec{.death_signal = SIGKILL};
  // Kubelet ends the container when its time is over.
  if (config.control.source.in_cluster) spec.stop_grace = kLongestDrain;
  return supervise_self("nodemesh-proxy", argc, argv, std::move(spec));
}

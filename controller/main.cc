// nodemesh-controller, standalone: the certificate authority of all nodes of one folder, on a Unix socket.
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>

#include <CLI/CLI.hpp>

#include "base/log.h"
#include "controller/ca.h"
#include "controller/folder_authorizer.h"
#include "controller/grpc_server.h"
#include "controller/issuer.h"
#include "io/reactor.h"
#include "kube/folder.h"
#include "kube/store.h"
#include "translate/translate.h"

namespace nodemesh::controller {
namespace {

struct Options {
  std::string config, listen;
  CertificateAuthority::Settings authority;
  std::vector<uid_t> allowed_uids;
  int64_t socket_gid = -1;
  bool log_json = false;
  std::string log_level = "info";
};

// Stops the reactor at SIGTERM or SIGINT, as an ordinary event between two others.
class StopSignal final : private io::EventHandler {
 public:
  explicit StopSignal(io::Reactor& reactor) : reactor_(reactor) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigprocmask(SIG_BLOCK, &set, nullptr);  // before gRPC starts its threads, which inherit the mask
    fd_.reset(::signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC));
  }
  ~StopSignal() { reactor_.remove(fd_.get(), *this); }
  Result<> start() { return reactor_.add(fd_.get(), *this, EPOLLIN); }

 private:
  void on_events(uint32_t) override { reactor_.stop(); }
  io::Reactor& reactor_;
  Fd fd_;
};

// "24h", "90s", "15m", "3650d" or plain seconds.
std::string parse_duration(const std::string& text, seconds& out) {
  size_t used = 0;
  while (used < text.size() && text[used] >= '0' && text[used] <= '9') ++used;
  std::string unit = text.substr(used);
  int64_t factor = unit == "d"                   ? 86400
                   : unit == "h"                 ? 3600
                   : unit == "m"                 ? 60
                   : unit == "s" || unit.empty() ? 1
                                                 : 0;
  if (used == 0 || used > 9 || factor == 0)
    return "\"" + text + "\" is not a duration; write 90s, 15m, 24h or 3650d";
  out = seconds(std::stoll(text.substr(0, used)) * factor);
  return out.count() > 0 ? "" : "must be longer than 0";
}

void log_problems(const kube::Store& store) {
  for (const auto& status : store.statuses()) {
    if (status.kind != "Pod" && !status.kind.empty()) continue;  // the others are the agents' to judge
    for (const auto& problem : status.problems) {
      if (problem.severity == kube::Severity::error) log::warn(log::Component::config, problem.to_string());
    }
  }
}

Result<> run(const Options& options) {
  io::Reactor reactor;
  StopSignal stop(reactor);
  Clock clock;
  auto authority = CertificateAuthority::open(clock, options.authority);
  if (!authority) return std::unexpected(authority.error());

  kube::Store store(translate::kinds());
  FolderAuthorizer authorizer;
  kube::Folder folder(reactor, options.config, store, [&] {
    authorizer.update(store);
    log_problems(store);
  });
  if (auto started = folder.start(); !started) return started;
  authorizer.update(store);
  log_problems(store);

  Issuer issuer(**authority, authorizer);
  std::set<uid_t> uids(options.allowed_uids.begin(), options.allowed_uids.end());
  uids.insert({0, ::geteuid()});
  GrpcServer::Settings settings{options.listen, std::move(uids), static_cast<gid_t>(options.socket_gid)};
  auto server = GrpcServer::start(reactor, issuer, std::move(settings));
  if (!server) return std::unexpected(server.error());
  if (auto started = stop.start(); !started) return started;
  log::info(log::Component::controller, "serving certificates",
            {{"socket", options.listen},
             {"trust_domain", (*authority)->trust_domain()},
             {"accounts", authorizer.size()}});
  reactor.run();
  log::info(log::Component::controller, "stopping");
  return {};
}

}  // namespace
}  // namespace nodemesh::controller

int main(int argc, char** argv) {
  using namespace nodemesh;
  controller::Options options;
  CLI::App app("nodemesh-controller: the certificate authority of a standalone mesh");
  app.add_option("--config", options.config, "folder of manifests")->required();
  std::string listen;
  app.add_option("--listen", listen, "unix:PATH of the gRPC socket")
      ->required()
      ->check([](const std::string& text) {
        return text.starts_with("unix:/") ? "" : "write unix:/absolute/path";
      });
  app.add_option("--state-dir", options.authority.state_dir, "directory of the root key, mode 0700")
      ->required();
  app.add_option("--trust-domain", options.authority.trust_domain, "trust domain of every identity")
      ->capture_default_str();
  auto duration = [](seconds& out) {
    return [&out](const std::string& text) { return controller::parse_duration(text, out); };
  };
  std::string max_lifetime, root_lifetime;
  app.add_option("--max-lifetime", max_lifetime, "longest certificate, e.g. 24h")
      ->check(duration(options.authority.max_lifetime));
  app.add_option("--root-lifetime", root_lifetime, "of a root made now, e.g. 3650d")
      ->check(duration(options.authority.root_lifetime));
  app.add_option("--allow-uid", options.allowed_uids, "uids that may connect, besides our own and root's");
  app.add_option("--socket-gid", options.socket_gid, "group of the socket")
      ->check(CLI::Range(int64_t{0}, int64_t{4294967294}));
  app.add_option("--log-level", options.log_level, "debug, info, warn, error or off")->capture_default_str();
  app.add_flag("--log-json", options.log_json, "log as JSON lines");
  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp& help) {
    return app.exit(help);
  } catch (const CLI::ParseError& error) {
    std::fprintf(stderr, "nodemesh-controller: %s; see nodemesh-controller --help\n", error.what());
    return 2;
  }
  options.listen = listen.substr(5);

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

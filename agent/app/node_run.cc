#include "app/node_run.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <sstream>
#include <thread>

#include <CLI/CLI.hpp>

#include "app/config.h"
#include "base/fd.h"
#include "base/log.h"
#include "kernel/capture.h"

namespace nodemesh::app {
namespace fs = std::filesystem;
namespace {

constexpr auto kProxyGrace = seconds(35);  // its own drain limit is 30 s
constexpr auto kWardenGrace = seconds(10);
constexpr auto kEmptyCgroup = seconds(5);

int cannot_start(const std::string& why) {
  fmt::print(stderr, "meshctl node run: {}\n", why);
  return kCannotStart;
}

void add_options(CLI::App& app, NodeConfig& config) {
  app.add_option("--config", config.config_dir, "folder of manifests")->required()->type_name("DIR");
  app.add_option("--node", config.node, "name of this node, as in spec.nodeName")
      ->required()
      ->type_name("NAME");
  app.add_option("--run-dir", config.run_dir, "sockets of this node; default /run/nodemesh/NAME")
      ->type_name("DIR");
  app.add_option("--cgroup", config.cgroup, "cgroup2 directory of the node; pods lie below its kubepods")
      ->type_name("DIR");
  app.add_option("--bpf-dir", config.bpf_dir, "where to pin; default /sys/fs/bpf/nodemesh/NAME")
      ->type_name("DIR");
  app.add_option("--kubelet-cgroup", config.kubelet_cgroup, "kubelet's cgroup2 directory, to know its probes")
      ->type_name("DIR");
  app.add_option("--ca", config.ca, "the certificate authority's socket")
      ->capture_default_str()
      ->type_name("unix:PATH");
  app.add_flag("--with-ca", config.with_ca, "start the certificate authority too");
  app.add_option("--ca-state", config.ca_state, "where that one keeps its root")
      ->capture_default_str()
      ->type_name("DIR");
  app.add_option("--cert-lifetime", config.cert_lifetime, "of workload certificates, e.g. 24h or 30s");
  app.add_option("--workers", config.workers, "worker threads of the proxy; default by CPUs")
      ->check(CLI::Range(1, 64));
  app.add_option("--proxy-uid", config.proxy_uid, "user and group the proxy becomes")->capture_default_str();
  app.add_option("--metrics-port", config.metrics_port, "default 15020");
  app.add_option("--ready-port", config.ready_port, "default 15021");
  app.add_option("--admin-port", config.admin_port, "default 15000");
  app.add_option("--log-format", config.log_format, "text or json")->check(CLI::IsMember({"text", "json"}));
  app.add_flag("--fail-open", config.fail_open, "pods' traffic passes untouched while there is no proxy");
  app.add_flag("--strict", config.strict, "unknown pods are denied even while no warden runs");
  app.add_flag("--allow-hybrid", config.allow_hybrid, "accept cgroup v1 hierarchies beside cgroup2 (tests)");
  app.add_option("proxy-options", config.proxy_extra, "after --: passed to nodemesh-proxy as they are");
}

std::string cgroup2_mount(const std::string& mounts) {
  std::istringstream lines(mounts);
  std::string line, device, path, kind;
  while (std::getline(lines, line)) {
    std::istringstream words(line);
    if (words >> device >> path >> kind && kind == "cgroup2") return path;
  }
  return "/sys/fs/cgroup";
}

// Beside this program, where a build tree has it, or in PATH.
std::string find_program(const std::string& name) {
  std::error_code error;
  fs::path here = fs::read_symlink("/proc/self/exe", error).parent_path();
  for (const char* folder : {".", "../agent/app", "../controller", "../bin"}) {
    fs::path candidate = here / folder / name;
    if (::access(candidate.c_str(), X_OK) == 0) return candidate.lexically_normal();
  }
  const char* path = std::getenv("PATH");
  std::istringstream folders(path ? path : "");
  for (std::string folder; std::getline(folders, folder, ':');) {
    std::string candidate = folder + "/" + name;
    if (!folder.empty() && ::access(candidate.c_str(), X_OK) == 0) return candidate;
  }
  return {};
}

// Directories made here, to be removed in the end, the last first.
class Made {
 public:
  Result<> directory(const fs::path& path, std::string_view what) {
    std::error_code error;
    if (fs::is_directory(path, error)) return {};
    if (path.has_parent_path() && path != path.parent_path()) {
      if (auto ok = directory(path.parent_path(), what); !ok) return ok;
    }
    if (::mkdir(path.c_str(), 0755) < 0 && errno != EEXIST) {
      return fail_errno(fmt::format("{}: making {}", what, path.string()));
    }
    made_.push_back(path);
    return {};
  }
  // This one too, made here or by an earlier run that crashed.
  void adopt(const fs::path& path) {
    if (std::ranges::find(made_, path) == made_.end()) made_.push_back(path);
  }
  // A cgroup is busy until the last process has been reaped, so this waits a little; what others still use
  // stays.
  void remove() {
    auto deadline = Monotonic::now() + kEmptyCgroup;
    for (; !made_.empty(); made_.pop_back()) {
      while (::rmdir(made_.back().c_str()) < 0 && errno == EBUSY && Monotonic::now() < deadline) {
        std::this_thread::sleep_for(milliseconds(10));
      }
    }
  }

 private:
  std::vector<fs::path> made_;
};

// Sticky and writable by the proxy's group: each of the two processes makes its own sockets, neither removes
// the other's; setgid, so that the warden's socket belongs to that group although the warden may not change
// owners.
Result<Fd> prepare_run_dir(const NodeConfig& config, Made& made) {
  if (auto ok = made.directory(config.run_dir, "--run-dir"); !ok)
    return std::unexpected(std::move(ok.error()));
  Fd fd(::open(config.run_dir.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd) return fail_errno("--run-dir " + config.run_dir);
  if (::flock(fd.get(), LOCK_EX | LOCK_NB) < 0) {
    return fail("--run-dir " + config.run_dir +
                " is in use by another `meshctl node run`: stop it or name another");
  }
  if (::fchown(fd.get(), static_cast<uid_t>(-1), config.proxy_uid) < 0 || ::fchmod(fd.get(), 03775) < 0) {
    return fail_errno("giving --run-dir " + config.run_dir + " to the proxy's group");
  }
  return fd;
}

std::string default_bpf_dir(const NodeConfig& config) {
  return "/sys/fs/bpf/nodemesh/" + config.node;
}

Result<> complete(NodeConfig& config) {
  if (auto ok = check_node_name(config.node); !ok) return ok;
  if (::geteuid() != 0) return fail("a node needs root (BPF, network namespaces, cgroups): run it with sudo");
  auto mounts = read_text_file("/proc/mounts");
  if (!mounts) return std::unexpected(std::move(mounts.error()));
  if (auto ok = check_cgroup_mode(*mounts, config.allow_hybrid); !ok) return ok;
  if (!fs::is_directory(config.config_dir)) {
    return fail("--config " + config.config_dir + " is not a folder: make it and put manifests into it");
  }
  if (config.run_dir.empty()) config.run_dir = "/run/nodemesh/" + config.node;
  if (config.cgroup.empty()) config.cgroup = cgroup2_mount(*mounts) + "/nodemesh/" + config.node;
  if (config.bpf_dir.empty()) config.bpf_dir = default_bpf_dir(config);
  while (config.cgroup.size() > 1 && config.cgroup.ends_with('/')) config.cgroup.pop_back();
  // Children keep their working directory, but nobody should have to rely on that.
  for (std::string* path : {&config.config_dir, &config.run_dir, &config.cgroup, &config.bpf_dir}) {
    *path = fs::absolute(*path).lexically_normal();
  }
  if (config.workers == 0) config.workers = default_workers(std::thread::hardware_concurrency());
  return {};
}

Result<> make_cgroups(const NodeConfig& config, Made& made) {
  // The nearest directory that exists tells the file system before anything is made in a wrong one.
  fs::path existing = config.cgroup;
  while (!fs::exists(existing)) existing = existing.parent_path();
  if (auto ok = check_cgroup2_directory(existing, "--cgroup"); !ok) return ok;
  for (const char* leaf : {"/warden", "/proxy"}) {
    if (auto ok = made.directory(config.agent_pod() + leaf, "--cgroup"); !ok) return ok;
  }
  for (const char* own : {"", "/warden", "/proxy"}) made.adopt(config.agent_pod() + own);
  return {};
}

// The proxy must reach the socket, so the folder it lies in is open to pass.
Result<> make_ca_directory(const NodeConfig& config) {
  auto parent = std::filesystem::path(config.ca.substr(config.ca.find(':') + 1)).parent_path();
  std::error_code error;
  std::filesystem::create_directories(parent, error);
  if (error) return fail("--ca: cannot make " + parent.string() + ": " + error.message());
  return {};
}

Result<> check_programs(const NodeConfig& config) {
  for (const char* name : {"nodemesh-warden", "nodemesh-proxy", "nodemesh-controller"}) {
    if (std::string_view(name) == "nodemesh-controller" && !config.with_ca) continue;
    if (find_program(name).empty()) {
      return fail(fmt::format("{} is neither beside this program nor in PATH: install or build it", name));
    }
  }
  return {};
}

int run(NodeConfig& config) {
  Made made_directories, made_cgroups;
  if (auto ok = complete(config); !ok) return cannot_start(ok.error().message);
  if (auto ok = check_programs(config); !ok) return cannot_start(ok.error().message);
  if (config.with_ca) {
    if (auto ok = make_ca_directory(config); !ok) return cannot_start(ok.error().message);
  }
  auto lock = prepare_run_dir(config, made_directories);
  if (!lock) return cannot_start(lock.error().message);
  if (auto ok = make_cgroups(config, made_cgroups); !ok) {
    made_cgroups.remove();
    made_directories.remove();
    return cannot_start(ok.error().message);
  }
  bool own_bpf_dir = config.bpf_dir == default_bpf_dir(config) || !fs::exists(config.bpf_dir);
  Clock clock;
  int exit_code = supervise(children_of(config, find_program), clock);
  // A warden that was killed could not clean up. One that did not start has, and the pins may be another's.
  if (exit_code != kCannotStart) {
    if (auto gone = kernel::remove_pins(config.bpf_dir); !gone) {
      log::warn(log::Component::app, gone.error().message, {{"doing", "removing pins"}});
    }
    std::error_code error;
    fs::remove(config.run_dir + "/warden.sock", error);
    fs::remove(config.run_dir + "/admin.sock", error);
    if (own_bpf_dir) fs::remove(config.bpf_dir, error);
  }
  made_cgroups.remove();
  made_directories.remove();
  return exit_code;
}

void add_if(std::vector<std::string>& argv, bool wanted, std::initializer_list<std::string> words) {
  if (wanted) argv.insert(argv.end(), words);
}

std::vector<std::string> warden_argv(const NodeConfig& config) {
  std::vector<std::string> argv{"nodemesh-warden",
                                "--config",
                                config.config_dir,
                                "--node",
                                config.node,
                                "--run-dir",
                                config.run_dir,
                                "--bpf-dir",
                                config.bpf_dir,
                                "--kubepods",
                                config.kubepods(),
                                "--proxy-cgroup",
                                config.agent_pod() + "/proxy",
                                "--clean-exit",
                                "--workers",
                                std::to_string(config.workers),
                                "--proxy-uid",
                                std::to_string(config.proxy_uid),
                                "--proxy-gid",
                                std::to_string(config.proxy_uid)};
  add_if(argv, !config.kubelet_cgroup.empty(), {"--kubelet-cgroup", config.kubelet_cgroup});
  add_if(argv, config.fail_open, {"--fail-open"});
  add_if(argv, config.strict, {"--strict"});
  add_if(argv, config.allow_hybrid, {"--allow-hybrid"});
  add_if(argv, !config.log_format.empty(), {"--log-format", config.log_format});
  return argv;
}

std::vector<std::string> proxy_argv(const NodeConfig& config) {
  std::vector<std::string> argv{"nodemesh-proxy",
                                "--config",
                                config.config_dir,
                                "--node",
                                config.node,
                                "--run-dir",
                                config.run_dir,
                                "--workers",
                                std::to_string(config.workers),
                                "--ca",
                                config.ca,
                                "--uid",
                                std::to_string(config.proxy_uid)};
  add_if(argv, config.metrics_port != 0, {"--metrics-port", std::to_string(config.metrics_port)});
  add_if(argv, config.ready_port != 0, {"--ready-port", std::to_string(config.ready_port)});
  add_if(argv, config.admin_port != 0, {"--admin-port", std::to_string(config.admin_port)});
  add_if(argv, !config.cert_lifetime.empty(), {"--cert-lifetime", config.cert_lifetime});
  add_if(argv, !config.log_format.empty(), {"--log-format", config.log_format});
  argv.insert(argv.end(), config.proxy_extra.begin(), config.proxy_extra.end());
  return argv;
}

}  // namespace

std::string NodeConfig::agent_pod() const {
  // FNV-1a of the name: the same pod after every start, another one per node.
  uint64_t hash = 0xcbf29ce484222325;
  for (unsigned char c : node) hash = (hash ^ c) * 0x100000001b3;
  return fmt::format("{}/pod6e6d6167-656e-4000-8000-{:012x}", kubepods(), hash & 0xffffffffffff);
}

uint32_t default_workers(unsigned cpus) {
  return std::clamp(cpus / 4, 2U, 8U);
}

std::vector<ChildSpec> children_of(const NodeConfig& config,
                                   const std::function<std::string(const std::string&)>& find) {
  // All die with this process, and by SIGKILL: a crash must leave pods captured (they fail closed, and the
  // next run adopts the pins), only a clean stop lets go of them.
  std::vector<ChildSpec> out;
  // The proxy stops first: it drains while the warden still makes sockets, and no pod is let go before.
  out.push_back({.name = "nodemesh-proxy",
                 .program = find("nodemesh-proxy"),
                 .argv = proxy_argv(config),
                 .cgroup = config.agent_pod() + "/proxy",
                 .stop_grace = kProxyGrace});
  out.push_back({.name = "nodemesh-warden",
                 .program = find("nodemesh-warden"),
                 .argv = warden_argv(config),
                 .cgroup = config.agent_pod() + "/warden",
                 .stop_grace = kWardenGrace});
  if (config.with_ca) {
    out.push_back({.name = "nodemesh-controller",
                   .program = find("nodemesh-controller"),
                   .argv = {"nodemesh-controller", "--config", config.config_dir, "--listen", config.ca,
                            "--state-dir", config.ca_state, "--allow-uid", std::to_string(config.proxy_uid),
                            "--socket-gid", std::to_string(config.proxy_uid)},
                   .stop_grace = seconds(5)});
  }
  return out;
}

int node_run_main(int argc, const char* const* argv) {
  NodeConfig config;
  CLI::App app("Runs one standalone node: nodemesh-warden and nodemesh-proxy, with the objects of a folder.",
               "meshctl node run");
  add_options(app, config);
  try {
    app.parse(argc, argv);
  } catch (const CLI::CallForHelp& help) {
    return app.exit(help);
  } catch (const CLI::ParseError& error) {
    cannot_start(fmt::format("{}; see meshctl node run --help", error.what()));
    return kWrongUsage;
  }
  log::set_json(config.log_format == "json");
  return run(config);
}

}  // namespace nodemesh::app

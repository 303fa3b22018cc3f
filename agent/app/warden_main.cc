// nodemesh-warden: the privileged process of a node. Start-up in order, one sentence for each thing that can
// be missing.
#include <fcntl.h>
#include <fmt/format.h>
#include <linux/capability.h>
#include <poll.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <time.h>

#include <cerrno>
#include <cstring>
#include <filesystem>

#include "app/config.h"
#include "app/supervisor.h"
#include "base/clock.h"
#include "base/log.h"
#include "io/reactor.h"
#include "kernel/capture.h"
#include "kernel/cgroup.h"
#include "kernel/probe.h"
#include "warden/channel.h"
#include "warden/opener.h"
#include "warden/pod_source.h"
#include "warden/privilege.h"
#include "warden/processes.h"
#include "warden/standby.h"
#include "warden/warden.h"

namespace nodemesh::app {
namespace {

constexpr auto kLockAgain = milliseconds(50);
constexpr auto kRemovalWord = std::chrono::seconds(1);
constexpr auto kProxyDrain = std::chrono::seconds(32);  // its own limit is 30
constexpr auto kProxyStart = std::chrono::seconds(60);

int cannot_start(const std::string& why) {
  fmt::print(stderr, "nodemesh-warden: {}\n", why);
  return kCannotStart;
}

constexpr std::initializer_list<int> kNeeded{CAP_BPF, CAP_NET_ADMIN, CAP_SYS_ADMIN, CAP_PERFMON,
                                             CAP_SYS_PTRACE};

Result<> check_rights() {
  auto missing = warden::missing_capabilities(kNeeded);
  if (missing.empty()) return {};
  return fail(fmt::format("missing capability {}: run as root, or add it to the container's securityContext",
                          fmt::join(missing, ", ")));
}

kernel::CaptureOptions capture_options(const WardenConfig& config) {
  return {.kubepods_cgroup = config.kubepods,
          .kubelet_cgroup = config.kubelet_cgroup,
          .pin_dir = config.bpf_dir,
          .fail_open = config.fail_open,
          .strict = config.strict,
          .attach_late = !config.strict};  // which would rather refuse than miss one connection
}

// Everything that can be said without changing anything.
Result<> check_before_start(const WardenConfig& config) {
  if (auto ok = check_node_name(config.node); !ok) return ok;
  auto mounts = read_text_file("/proc/mounts");
  if (!mounts) return std::unexpected(std::move(mounts.error()));
  if (auto ok = check_cgroup_mode(*mounts, config.allow_hybrid); !ok) return ok;
  if (auto ok = check_cgroup2_directory(config.kubepods, "--kubepods"); !ok) return ok;
  if (auto ok = check_cgroup2_directory(config.proxy_cgroup, "--proxy-cgroup"); !ok) return ok;
  std::error_code error;
  if (auto ok = kube::check_choice(config.source); !ok) return ok;
  const auto& folder = config.source.folder;
  if (!folder.empty() && !std::filesystem::is_directory(folder, error))
    return fail(fmt::format("--config {} is not a folder: make it and put manifests into it", folder));
  if (!std::filesystem::is_directory(config.run_dir, error)) {
    return fail(fmt::format("--run-dir {} is not a folder: make it", config.run_dir));
  }
  auto missing = kernel::check(capture_options(config));
  return missing.empty() ? Result<>() : fail(fmt::format("{}", fmt::join(missing, "; ")));
}

// Two wardens would undo each other's work. The lock lives until its descriptor is closed; none: another
// warden has it.
Result<Fd> lock_pins(const std::string& directory) {
  std::error_code error;
  std::filesystem::create_directories(directory, error);
  Fd fd(::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd) return fail_errno("--bpf-dir " + directory);
  if (::flock(fd.get(), LOCK_EX | LOCK_NB) == 0) return fd;
  if (errno == EWOULDBLOCK) return Fd();
  return fail_errno("locking --bpf-dir " + directory);
}

// SIGTERM and SIGINT.
class StopSignals final : private io::EventHandler {
 public:
  StopSignals(io::Reactor& reactor, std::move_only_function<void()> stop)
      : reactor_(reactor), stop_(std::move(stop)) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    ::sigprocmask(SIG_BLOCK, &set, nullptr);
    ::signal(SIGPIPE, SIG_IGN);
    fd_.reset(::signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC));
  }
  ~StopSignals() { reactor_.remove(fd_.get(), *this, true); }
  Result<> start() { return reactor_.add(fd_.get(), *this, EPOLLIN); }

 private:
  void on_events(uint32_t) override {
    signalfd_siginfo info;
    while (::read(fd_.get(), &info, sizeof info) == sizeof info) stop_();
  }
  io::Reactor& reactor_;
  std::move_only_function<void()> stop_;
  Fd fd_;
};

// The end of a warden. Where the agent is being removed, pods leave the mesh first, and the proxy has the
// time that it gives to open connections; a word of the removal may come a moment after the signal. Otherwise
// the next warden gets the lock, and this one makes sockets until its proxy has none open any more.
class Ending {
 public:
  Ending(io::Reactor& reactor, warden::Warden& warden, const warden::PodSource& source,
         const WardenConfig& config, Fd& lock)
      : reactor_(reactor), warden_(warden), source_(source), config_(config), lock_(lock) {}
  void begin() {
    bool waits = config_.standby || !config_.daemonset.empty();
    if (std::exchange(began_, true) || !waits) return reactor_.stop();
    until_ = reactor_.now() + kRemovalWord;
    check();
  }
  // Whether this one is to take everything out.
  bool removed() const { return stage_ != Stage::retired && source_.removed(); }

 private:
  enum class Stage { waiting, released, retired };
  void check() {
    if (stage_ == Stage::waiting && source_.removed()) {
      stage_ = Stage::released;
      warden_.release_pods();
      until_ = reactor_.now() + kProxyDrain;
    } else if (stage_ == Stage::waiting && config_.standby && reactor_.now() >= until_) {
      stage_ = Stage::retired;
      warden_.retire();
      lock_.reset();
      log::info(log::Component::warden,
                "the next warden may take over; sockets are made until the proxy has ended");
    }
    if (is_over()) return reactor_.stop();
    timer_.arm(reactor_, milliseconds(100));
  }
  bool is_over() const {
    if (stage_ == Stage::retired) return !warden_.has_proxy() || source_.removed();
    return reactor_.now() >= until_ || (stage_ == Stage::released && !warden_.has_proxy());
  }
  io::Reactor& reactor_;
  warden::Warden& warden_;
  const warden::PodSource& source_;
  const WardenConfig& config_;
  Fd& lock_;
  bool began_ = false;
  Stage stage_ = Stage::waiting;
  Monotonic::time_point until_{};
  io::Timer timer_{[this] { check(); }};
};

uint64_t generation_now() {
  timespec now{};
  ::clock_gettime(CLOCK_BOOTTIME, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000 + static_cast<uint64_t>(now.tv_nsec);
}

// The cgroup2 directory of the proxy's container in our own pod; empty: none runs.
std::string find_proxy(const warden::HostProcesses& host, const WardenConfig& config) {
  auto path = warden::find_user_in(host, config.host_cgroup, config.own_pod.substr(config.host_cgroup.size()),
                                   config.proxy_uid);
  return path.empty() ? "" : config.host_cgroup + path;
}

warden::WardenOptions warden_options(const WardenConfig& config) {
  warden::WardenOptions options{.kubepods = config.kubepods,
                                .proxy_cgroup = config.proxy_cgroup,
                                .own_cgroup = config.own_cgroup,
                                .proc = config.proc,
                                .max_workers = config.workers,
                                .generation = generation_now(),
                                .fail_open = config.fail_open,
                                .strict = config.strict,
                                .hands_over = config.standby};
  if (!config.own_cgroup.empty())
    options.find_proxy = [&config] { return find_proxy(warden::HostProcesses(config.proc), config); };
  return options;
}

// Until the lock is ours; false: SIGTERM came before.
Result<bool> stand_by(const WardenConfig& config, io::Reactor& reactor, Fd& lock) {
  warden::Standby standby(reactor);
  auto channel = warden::ChannelListener::create(
      reactor, config.run_dir + "/warden.sock", config.proxy_uid, config.proxy_gid,
      [&](Fd socket, pid_t peer) { standby.accept_proxy(std::move(socket), peer); });
  if (!channel) return std::unexpected(std::move(channel.error()));
  StopSignals signals(reactor, [&] { reactor.stop(); });
  if (auto ok = signals.start(); !ok) return std::unexpected(std::move(ok.error()));
  Result<> tried;
  io::Timer again([&] {
    auto got = lock_pins(config.bpf_dir);
    if (!got) tried = std::unexpected(std::move(got.error()));
    if (got) lock = std::move(*got);
    if (!tried || lock) return reactor.stop();
    again.arm(reactor, kLockAgain);
  });
  again.arm(reactor, kLockAgain);
  log::info(log::Component::warden, "standing by: another warden serves this node", {{"node", config.node}});
  reactor.run();
  if (!tried) return std::unexpected(std::move(tried.error()));
  return static_cast<bool>(lock);
}

Result<> serve(WardenConfig& config, io::Reactor& reactor, kernel::Capture& capture, Fd& lock) {
  // Else we could not ask who the pods are, ourselves among them.
  if (!config.own_pod.empty()) {
    auto id = kernel::cgroup_id(config.own_pod);
    if (!id) return std::unexpected(std::move(id.error()));
    if (auto ok = capture.set_cgroup(*id, NM_ENROL_OFF); !ok) return ok;
  }
  auto opener = warden::Opener::start(reactor, config.proxy_cgroup);
  if (!opener) return std::unexpected(std::move(opener.error()));
  warden::Warden warden(reactor, capture, **opener, warden_options(config));
  // Before any pod is touched: its path may be in use.
  auto channel = warden::ChannelListener::create(
      reactor, config.run_dir + "/warden.sock", config.proxy_uid, config.proxy_gid,
      [&](Fd socket, pid_t peer) { warden.accept_proxy(std::move(socket), peer); });
  if (!channel) return std::unexpected(std::move(channel.error()));
  if (auto ok = warden.start(); !ok) return ok;
  Clock clock;
  auto source =
      warden::make_pod_source(reactor, clock, config.source, config.node, config.daemonset, config.snapshot);
  if (!source) return std::unexpected(std::move(source.error()));
  Ending ending(reactor, warden, **source, config, lock);
  StopSignals signals(reactor, [&] { ending.begin(); });
  if (auto ok = signals.start(); !ok) return ok;
  Result<> attached;
  auto on_pods = [&](warden::LocalPods pods) {
    warden.set_pods(std::move(pods));
    if (capture.attached() || !attached) return;
    attached = capture.attach();
    if (!attached) return reactor.stop();
    log::info(log::Component::warden, "this node is captured from now on");
  };
  if (auto ok = (*source)->start(std::move(on_pods)); !ok) return ok;
  if (!attached) return attached;
  log::info(log::Component::warden, capture.adopted() ? "warden is back" : "warden started",
            {{"node", config.node},
             {"config", config.source.folder.empty() ? "the API server" : config.source.folder}});
  reactor.run();
  if (!attached) return attached;
  config.clean_exit = config.clean_exit || ending.removed();
  if (config.clean_exit) warden.leave_pods();
  return {};
}

// The proxy's container may start after ours.
Result<std::string> wait_for_proxy(const warden::HostProcesses& host, const WardenConfig& config) {
  for (auto until = Monotonic::now() + kProxyStart; Monotonic::now() < until; ::poll(nullptr, 0, 100)) {
    if (auto found = find_proxy(host, config); !found.empty()) return found;
  }
  return fail(
      fmt::format("no process of user {} runs in our pod, cgroup {}: does it have the proxy's "
                  "container? Else name the proxy's cgroup with --proxy-cgroup",
                  config.proxy_uid, config.own_pod));
}

// Where things are in the host's cgroup2 tree, as far as the command line does not say: from our own pod's
// place.
Result<> find_places(const warden::HostProcesses& host, WardenConfig& config) {
  if (!config.kubepods.empty() && !config.proxy_cgroup.empty()) return {};
  auto text = read_text_file(config.proc + "/self/cgroup");
  if (!text) return std::unexpected(std::move(text.error()));
  auto at = text->find("0::");
  auto own = at == text->npos ? "" : text->substr(at + 3, text->find('\n', at) - at - 3);
  auto pod = warden::pod_above(own), kubepods = warden::kubepods_above(own);
  if (kubepods.empty()) {
    return fail(
        fmt::format("this process runs in cgroup \"{}\", which is no pod's: name the pods' with "
                    "--kubepods and the proxy's with --proxy-cgroup",
                    own));
  }
  config.own_pod = config.host_cgroup + pod;
  if (config.kubepods.empty()) config.kubepods = config.host_cgroup + kubepods;
  if (config.kubelet_cgroup.empty()) {
    auto kubelet = warden::find_kubelet(host, kubepods);
    if (kubelet.empty())
      log::warn(log::Component::warden,
                "no kubelet runs here: its probes are not known from other traffic; name its cgroup with "
                "--kubelet-cgroup");
    else
      config.kubelet_cgroup = config.host_cgroup + kubelet;
  }
  if (!config.proxy_cgroup.empty()) return {};
  auto proxy = wait_for_proxy(host, config);
  if (!proxy) return std::unexpected(std::move(proxy.error()));
  config.own_cgroup = config.host_cgroup + std::string(own);
  config.proxy_cgroup = std::move(*proxy);
  return {};
}

// Paths in the host's procfs are the host's from here on, so that our own shows where pods are.
Result<> see_the_host(WardenConfig& config) {
  if (auto ok = check_rights(); !ok) return ok;
  warden::HostProcesses host(config.proc);
  if (auto ok = host.enter_host_cgroups(); !ok) return ok;
  return find_places(host, config);
}

int run_warden(WardenConfig config) {
  log::set_json(config.log_format == "json");
  if (auto limit = raise_descriptor_limit(); !limit) return cannot_start(limit.error().message);
  if (auto ok = see_the_host(config); !ok) return cannot_start(ok.error().message);
  if (auto ok = check_before_start(config); !ok) return cannot_start(ok.error().message);
  auto lock = lock_pins(config.bpf_dir);
  if (!lock) return cannot_start(lock.error().message);
  io::Reactor reactor;
  if (!*lock) {
    if (!config.standby)
      return cannot_start("--bpf-dir " + config.bpf_dir +
                          " is in use by another warden: stop that one first");
    auto got = stand_by(config, reactor, *lock);
    if (!got) return cannot_start(got.error().message);
    if (!*got) return 0;
  }
  auto capture = kernel::Capture::open(capture_options(config));
  if (!capture) return cannot_start(capture.error().message);
  const bool fresh = !(*capture)->adopted() || !(*capture)->attached();
  auto served = serve(config, reactor, **capture, *lock);
  // A first start that failed must not leave pods captured by programs that nobody serves.
  if ((served && config.clean_exit) || (!served && fresh)) {
    if (auto gone = (*capture)->detach_all(); !gone) {
      log::error(log::Component::bpf, gone.error().message, {{"doing", "removing pins"}});
    }
    ::rmdir(config.bpf_dir.c_str());  // unless something else is in it
  }
  if (!served) return cannot_start(served.error().message);
  log::info(log::Component::warden, "warden stopped", {{"node", config.node}});
  return 0;
}

}  // namespace
}  // namespace nodemesh::app

int main(int argc, char** argv) {
  using namespace nodemesh::app;
  auto parsed = parse_warden_command(argc, argv);
  if (parsed.exit_code >= 0) return parsed.exit_code;
  ::prctl(PR_SET_NAME, "nodemesh-warden");  // it was started as /proc/self/exe
  if (auto kept = nodemesh::warden::keep_capabilities(kNeeded); !kept)
    return cannot_start(kept.error().message);
  if (parsed.config.supervised) return run_warden(parsed.config);
  return supervise_self("nodemesh-warden", argc, argv,
                        parsed.config.standby ? ChildSpec{.stop_grace = kLongestDrain} : ChildSpec{});
}

#include "kernel/capture.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/bpf.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <map>
#include <optional>
#include <string_view>
#include <utility>

#include "kernel/audit.h"
#include "kernel/cgroup.h"
#include "kernel/link.h"
#include "kernel/map.h"
#include "kernel/objects.h"
#include "kernel/pins.h"

#ifndef SO_NETNS_COOKIE
#define SO_NETNS_COOKIE 71
#endif

namespace nodemesh::kernel {

struct Capture::State {
  Pins pins;
  bool adopted = false;
  std::optional<Programs> waiting;  // for attach()
  bool let_go = false;
  Fd kubepods;
  Fd kubelet;  // none: no probes
  uint64_t kubepods_id = 0;
  uint64_t kubelet_id = 0;
  nm_config config{};
  std::map<std::string, Map> maps;
  std::map<std::string, Link> links;
  std::map<uint64_t, Link> steering;

  Map& map(const char* name) { return maps.at(name); }
  Result<> open_cgroups(const CaptureOptions& options);
  Result<> open_maps();
  bool in_force() const;
  Result<> attach(const Programs& programs);
  Result<> adopt_steering();
  // The kernel's entry, or zeros.
  nm_pod pod(uint64_t netns_cookie) {
    nm_pod pod{};
    map("pods").get(netns_cookie, pod);
    return pod;
  }
  Result<> set_workers(uint64_t netns_cookie, nm_pod pod, uint32_t workers);
  Result<> write_config() { return map("config").set(uint32_t{0}, config); }
};

namespace {

constexpr const char* kMaps[] = {"config",  "agents",    "cgroups", "pods",  "published",
                                 "origins", "listeners", "probes",  "drops", "counters"};
constexpr const char* kListenerNames[] = {"outbound", "inbound", "HBONE"};

Result<Fd> open_directory(const std::string& path) {
  Fd fd(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd) return fail_errno(fmt::format("cgroup {}: open", path));
  return fd;
}

uint64_t monotonic_ns() {
  timespec now{};
  ::clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<uint64_t>(now.tv_sec) * 1'000'000'000 + now.tv_nsec;
}

nm_probe_key probe_key(const SockAddr& pod_port) {
  nm_probe_key key{};
  std::memcpy(key.address, pod_port.ip.bytes.data(), sizeof(key.address));
  key.port = pod_port.port;
  return key;
}

Result<> check_listener(int fd, uint64_t netns_cookie, std::string_view which) {
  auto cookie = kernel::netns_cookie(fd);
  if (!cookie) return std::unexpected(cookie.error());
  if (*cookie == netns_cookie) return {};
  return fail(
      fmt::format("{} listener of the pod with namespace cookie {}: the socket was made in namespace {}",
                  which, netns_cookie, *cookie));
}

}  // namespace

Result<> Capture::State::open_cgroups(const CaptureOptions& options) {
  if (auto fine = check_cgroups(options.kubepods_cgroup, options.kubelet_cgroup); !fine) return fine;
  auto id = cgroup_id(options.kubepods_cgroup);
  if (!id) return std::unexpected(id.error());
  kubepods_id = *id;
  auto fd = open_directory(options.kubepods_cgroup);
  if (!fd) return std::unexpected(fd.error());
  kubepods = std::move(*fd);
  if (options.kubelet_cgroup.empty()) return {};
  kubelet_id = cgroup_id(options.kubelet_cgroup).value_or(0);
  fd = open_directory(options.kubelet_cgroup);
  if (!fd) return std::unexpected(fd.error());
  kubelet = std::move(*fd);
  return {};
}

Result<> Capture::State::open_maps() {
  for (const char* name : kMaps) {
    auto opened = Map::open(pins.maps(), name);
    if (!opened) return std::unexpected(opened.error());
    maps.emplace(name, std::move(*opened));
  }
  return {};
}

// Whether an earlier process has attached any of the hooks.
bool Capture::State::in_force() const {
  return std::ranges::any_of(
      kHooks, [&](const Hook& hook) { return ::access(pins.link(hook.name).c_str(), F_OK) == 0; });
}

Result<> Capture::State::attach(const Programs& programs) {
  for (size_t i = 0; i < kHookCount; i++) {
    const Hook& hook = kHooks[i];
    const std::string pin = pins.link(hook.name);
    if (hook.kubelet && !kubelet) {
      if (auto stale = Link::open(pin))
        if (auto gone = stale->detach(); !gone) return gone;
      continue;
    }
    auto link = Link::attach(programs[i].get(), hook.kubelet ? kubelet.get() : kubepods.get(),
                             hook.attach_type, hook.kubelet ? kubelet_id : kubepods_id, pin);
    if (!link) return std::unexpected(link.error());
    links.emplace(hook.name, std::move(*link));
  }
  return {};
}

Result<> Capture::State::adopt_steering() {
  for (uint64_t cookie : pins.steered()) {
    auto link = Link::open(pins.steer(cookie));
    if (!link) return std::unexpected(link.error());
    auto program = load_steer(pins.maps(), cookie);
    if (!program) return std::unexpected(program.error());
    auto swapped = link->swap(program->get());
    if (swapped) {
      steering.insert_or_assign(cookie, std::move(*link));
    } else if (swapped.error().reason == Reason::POD_GONE) {  // the namespace died while nobody watched
      if (auto gone = link->detach(); !gone) return gone;
    } else {
      return swapped;
    }
  }
  return {};
}

Capture::Capture(std::unique_ptr<State> state) : state_(std::move(state)) {}
Capture::~Capture() = default;

Result<std::unique_ptr<Capture>> Capture::open(const CaptureOptions& options) {
  auto state = std::make_unique<State>();
  State& s = *state;
  if (auto done = s.open_cgroups(options); !done) return std::unexpected(done.error());
  s.pins = Pins::of(options.pin_dir);
  if (auto done = s.pins.make(options.pin_dir); !done) return std::unexpected(done.error());
  const auto others = Pins::of_other_versions(options.pin_dir);
  s.adopted = !others.empty() || ::access((s.pins.maps() + "/config").c_str(), F_OK) == 0;

  auto start = [&]() -> Result<> {
    // Sockets that are open keep their names.
    for (const Pins& other : others)
      if (auto done = s.pins.share_map(other, "origins"); !done) return done;
    auto programs = load_programs(s.pins.maps(), s.kubepods_id);
    if (!programs) return std::unexpected(programs.error());
    if (auto done = s.open_maps(); !done) return done;
    s.map("config").get(uint32_t{0}, s.config);
    s.config.fail_open = options.fail_open;
    s.config.strict = options.strict;
    // From now on: no pod may pass as unknown because maps that are new do not name it yet.
    s.config.heartbeat_ns = monotonic_ns();
    if (auto done = s.write_config(); !done) return done;
    for (const Pins& other : others)
      if (auto done = s.pins.take_over(other); !done) return done;
    if (options.attach_late && !s.in_force())
      s.waiting = std::move(*programs);
    else if (auto done = s.attach(*programs); !done)
      return done;
    return s.adopt_steering();
  };
  if (auto started = start(); !started) {
    // Half of a first start must not stay; what an earlier process left in force must.
    Error error = started.error();
    if (!s.adopted)
      if (auto undone = s.pins.remove(); !undone) error.message += "; and " + undone.error().message;
    return std::unexpected(error);
  }
  return std::unique_ptr<Capture>(new Capture(std::move(state)));
}

bool Capture::adopted() const {
  return state_->adopted;
}

bool Capture::attached() const {
  return !state_->waiting;
}

Result<> Capture::attach() {
  auto programs = std::exchange(state_->waiting, std::nullopt);
  return programs && !state_->let_go ? state_->attach(*programs) : Result<>();
}

Result<> Capture::beat() {
  if (state_->let_go) return {};
  state_->config.heartbeat_ns = monotonic_ns();
  return state_->write_config();
}

Result<> Capture::set_flags(bool fail_open, bool strict) {
  if (state_->let_go) return {};
  state_->config.fail_open = fail_open;
  state_->config.strict = strict;
  return state_->write_config();
}

Result<> Capture::add_agent(uint64_t id) {
  if (state_->let_go) return {};
  return state_->map("agents").set(id, uint8_t{1});
}

Result<> Capture::remove_agent(uint64_t id) {
  if (state_->let_go) return {};
  return state_->map("agents").erase(id);
}

Result<> Capture::set_cgroup(uint64_t id, nm_enrolment enrolment) {
  if (state_->let_go) return {};
  return state_->map("cgroups").set(id, nm_cgroup{static_cast<uint32_t>(enrolment), 0});
}

Result<> Capture::remove_cgroup(uint64_t id) {
  if (state_->let_go) return {};
  return state_->map("cgroups").erase(id);
}

Result<> Capture::set_pod(uint64_t netns_cookie, std::span<const Addr> addresses, nm_enrolment enrolment) {
  if (state_->let_go) return {};
  if (netns_cookie == 0)
    return fail("pod: the namespace cookie is 0; read it from a socket made in the namespace");
  if (addresses.empty() || addresses.size() > NM_POD_ADDRESSES)
    return fail(fmt::format("pod with namespace cookie {}: {} addresses; 1 to {} are supported", netns_cookie,
                            addresses.size(), NM_POD_ADDRESSES));
  nm_pod pod{};
  for (const Addr& address : addresses) {
    if (address.is_loopback() || address.is_unspecified())
      return fail(fmt::format("pod with namespace cookie {}: {} cannot be a pod's address", netns_cookie,
                              address.to_string()));
    std::memcpy(pod.addresses[pod.address_count++], address.bytes.data(), address.bytes.size());
  }
  pod.enrolment = enrolment;
  pod.workers = state_->pod(netns_cookie).workers;
  return state_->map("pods").set(netns_cookie, pod);
}

Result<> Capture::remove_pod(uint64_t netns_cookie) {
  if (auto done = unsteer(netns_cookie); !done) return done;
  return close_pod(netns_cookie);
}

Result<> Capture::close_pod(uint64_t netns_cookie) {
  if (state_->let_go) return {};
  if (auto done = clear_listeners(netns_cookie); !done) return done;
  return state_->map("pods").erase(netns_cookie);
}

Result<> Capture::steer(int netns_fd, uint64_t netns_cookie) {
  if (state_->let_go) return {};
  struct stat st{};
  if (::fstat(netns_fd, &st) != 0)
    return fail_errno(fmt::format("pod with namespace cookie {}: its namespace", netns_cookie));
  auto program = load_steer(state_->pins.maps(), netns_cookie);
  if (!program) return std::unexpected(program.error());
  auto link =
      Link::attach(program->get(), netns_fd, BPF_SK_LOOKUP, st.st_ino, state_->pins.steer(netns_cookie));
  if (!link) return std::unexpected(link.error());
  state_->steering.insert_or_assign(netns_cookie, std::move(*link));
  return {};
}

Result<> Capture::unsteer(uint64_t netns_cookie) {
  if (state_->let_go) return {};
  auto found = state_->steering.find(netns_cookie);
  if (found == state_->steering.end()) return {};
  auto gone = found->second.detach();
  if (gone) state_->steering.erase(found);
  return gone;
}

bool Capture::steered(uint64_t netns_cookie) const {
  return state_->steering.contains(netns_cookie);
}

uint64_t Capture::steered_inode(uint64_t netns_cookie) const {
  auto found = state_->steering.find(netns_cookie);
  return found == state_->steering.end() ? 0 : found->second.state().target_id;
}

// More workers: their listeners are there already. Fewer: nothing looks for the rest any more.
Result<> Capture::State::set_workers(uint64_t netns_cookie, nm_pod pod, uint32_t workers) {
  const uint32_t before = std::exchange(pod.workers, workers);
  if (before == workers) return {};
  if (auto done = map("pods").set(netns_cookie, pod); !done) return done;
  for (uint32_t kind = 0; kind < NM_LISTENER_COUNT; kind++) {
    for (uint32_t worker = workers; worker < before; worker++) {
      if (auto done = map("listeners").erase(nm_listener_key{netns_cookie, kind, worker}); !done) return done;
    }
  }
  return {};
}

Result<> Capture::set_listeners(uint64_t netns_cookie, std::span<const int> listeners) {
  if (state_->let_go) return {};
  const size_t workers = listeners.size() / NM_LISTENER_COUNT;
  if (workers == 0 || workers > NM_MAX_WORKERS || listeners.size() % NM_LISTENER_COUNT != 0)
    return fail(fmt::format("pod with namespace cookie {}: {} listeners; {} per worker, for 1 to {} workers",
                            netns_cookie, listeners.size(), +NM_LISTENER_COUNT, NM_MAX_WORKERS));
  const nm_pod pod = state_->pod(netns_cookie);
  if (pod.address_count == 0)
    return fail(fmt::format("pod with namespace cookie {}: set it before its listeners", netns_cookie));
  for (size_t i = 0; i < listeners.size(); i++)
    if (auto ok = check_listener(listeners[i], netns_cookie, kListenerNames[i / workers]); !ok) return ok;
  for (size_t i = 0; i < listeners.size(); i++) {
    const nm_listener_key key{netns_cookie, static_cast<uint32_t>(i / workers),
                              static_cast<uint32_t>(i % workers)};
    auto done = state_->map("listeners").set(key, static_cast<uint64_t>(listeners[i]));
    if (done) continue;
    if (done.error().reason != Reason::MAP_FULL)
      done.error().message += fmt::format(
          " ({} listener of the pod with namespace cookie {}; it must be a TCP socket that listens)",
          kListenerNames[key.kind], netns_cookie);
    return done;
  }
  return state_->set_workers(netns_cookie, pod, static_cast<uint32_t>(workers));
}

Result<> Capture::clear_listeners(uint64_t netns_cookie) {
  if (state_->let_go) return {};
  const nm_pod pod = state_->pod(netns_cookie);
  return pod.address_count == 0 ? Result<>() : state_->set_workers(netns_cookie, pod, 0);
}

void Capture::let_go() {
  state_->let_go = true;
}

bool Capture::taken_by_another() const {
  nm_config config{};
  return state_->map("config").get(uint32_t{0}, config) && config.heartbeat_ns != state_->config.heartbeat_ns;
}

uint64_t Capture::listener(uint64_t netns_cookie, nm_listener kind, uint32_t worker) const {
  uint64_t socket_cookie = 0;
  state_->map("listeners").get(nm_listener_key{netns_cookie, kind, worker}, socket_cookie);
  return socket_cookie;
}

bool Capture::has_listener(uint64_t netns_cookie, nm_listener kind) const {
  uint64_t socket_cookie = 0;
  const uint32_t workers = state_->pod(netns_cookie).workers;
  for (uint32_t worker = 0; worker < workers; worker++)
    if (state_->map("listeners").get(nm_listener_key{netns_cookie, kind, worker}, socket_cookie)) return true;
  return false;
}

Result<> Capture::set_probe(const SockAddr& pod_port) {
  if (state_->let_go) return {};
  return state_->map("probes").set(probe_key(pod_port), uint8_t{1});
}

Result<> Capture::clear_probe(const SockAddr& pod_port) {
  if (state_->let_go) return {};
  return state_->map("probes").erase(probe_key(pod_port));
}

std::vector<Capture::Pod> Capture::pods() const {
  std::vector<Pod> all;
  for (uint64_t cookie : state_->map("pods").keys<uint64_t>()) {
    nm_pod pod{};
    if (!state_->map("pods").get(cookie, pod)) continue;
    Pod& out = all.emplace_back(cookie, std::vector<Addr>{}, static_cast<nm_enrolment>(pod.enrolment));
    for (uint32_t i = 0; i < std::min<uint32_t>(pod.address_count, NM_POD_ADDRESSES); i++)
      std::memcpy(out.addresses.emplace_back().bytes.data(), pod.addresses[i], sizeof(pod.addresses[i]));
  }
  return all;
}

std::vector<Capture::Cgroup> Capture::cgroups() const {
  std::vector<Cgroup> all;
  for (uint64_t id : state_->map("cgroups").keys<uint64_t>()) {
    nm_cgroup cgroup{};
    if (state_->map("cgroups").get(id, cgroup))
      all.emplace_back(id, static_cast<nm_enrolment>(cgroup.enrolment));
  }
  return all;
}

std::vector<uint64_t> Capture::agents() const {
  return state_->map("agents").keys<uint64_t>();
}

std::vector<SockAddr> Capture::probes() const {
  std::vector<SockAddr> all;
  for (const nm_probe_key& key : state_->map("probes").keys<nm_probe_key>()) {
    SockAddr& out = all.emplace_back();
    std::memcpy(out.ip.bytes.data(), key.address, sizeof(key.address));
    out.port = key.port;
  }
  return all;
}

std::vector<uint64_t> Capture::steered_pods() const {
  std::vector<uint64_t> all;
  for (const auto& [cookie, link] : state_->steering) all.push_back(cookie);
  return all;
}

Counted Capture::read_counters() const {
  return {state_->map("drops").sums(NM_REASON_COUNT), state_->map("counters").sums(NM_COUNT_COUNTERS)};
}

std::vector<Finding> Capture::audit() const {
  std::vector<Finding> findings;
  for (const Hook& hook : kHooks) {
    auto link = state_->links.find(hook.name);
    if (link == state_->links.end()) continue;
    audit_hook(hook, link->second, hook.kubelet ? state_->kubelet.get() : state_->kubepods.get(), findings);
  }
  for (const auto& [cookie, link] : state_->steering) audit_steering(cookie, link, findings);
  return findings;
}

Result<> Capture::detach_all() {
  if (state_->let_go) return {};
  state_->links.clear();
  state_->steering.clear();
  return state_->pins.remove();
}

Result<uint64_t> netns_cookie(int socket_fd) {
  uint64_t cookie = 0;
  socklen_t length = sizeof(cookie);
  if (::getsockopt(socket_fd, SOL_SOCKET, SO_NETNS_COOKIE, &cookie, &length) != 0)
    return fail_errno("network namespace cookie of a socket (SO_NETNS_COOKIE needs Linux 5.14)");
  return cookie;
}

}  // namespace nodemesh::kernel

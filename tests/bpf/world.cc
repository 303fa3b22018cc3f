#include "bpf/world.h"

#include <bpf/bpf.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <poll.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "doctest/doctest.h"

namespace nodemesh::test {
namespace fs = std::filesystem;
namespace {

std::string cgroup2_mount() {
  std::ifstream mounts("/proc/self/mounts");
  for (std::string device, directory, type, rest;
       mounts >> device >> directory >> type && std::getline(mounts, rest);)
    if (type == "cgroup2") return directory;
  std::fputs("no cgroup2 file system is mounted\n", stderr);
  std::abort();
}

// A mount namespace of our own, so that the BPF file system leaves with the process.
const std::string& bpf_file_system() {
  static const std::string directory = [] {
    char name[] = "/tmp/nodemesh-bpf-tests-XXXXXX";
    if (::unshare(CLONE_NEWNS) != 0 || ::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0 ||
        !::mkdtemp(name) || ::mount("bpf", name, "bpf", 0, nullptr) != 0) {
      std::perror("mount a BPF file system");
      std::abort();
    }
    static std::string made = name;
    std::atexit([] {
      ::umount2(made.c_str(), MNT_DETACH);
      ::rmdir(made.c_str());
    });
    return made;
  }();
  return directory;
}

Fd make_netns() {
  Fd before(::open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC));
  REQUIRE(::unshare(CLONE_NEWNET) == 0);
  Fd made(::open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC));
  REQUIRE(::setns(before.get(), CLONE_NEWNET) == 0);
  return made;
}

template <class Do>
void inside(const Fd& netns, Do action) {
  Fd before(::open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC));
  REQUIRE(::setns(netns.get(), CLONE_NEWNET) == 0);
  action();
  REQUIRE(::setns(before.get(), CLONE_NEWNET) == 0);
}

void ip(const std::string& commands) {
  FILE* pipe = ::popen("ip -batch -", "w");
  REQUIRE(pipe);
  std::fputs(commands.c_str(), pipe);
  REQUIRE(::pclose(pipe) == 0);
}

void write_file(const char* path, const char* text) {
  std::ofstream(path) << text;
}

template <class Result>
void must(Result&& result) {
  if (!result) FAIL(result.error().message);
}

}  // namespace

World::World() : host(make_netns()), pod(make_netns()) {
  static std::atomic<int> number;
  const int id = ++number;
  directory = fmt::format("{}/nodemesh-bpf-tests-{}-{}", cgroup2_mount(), ::getpid(), id);
  kubepods = directory + "/kubepods";
  pod_cgroup = kubepods + "/burstable/pod1";
  container_cgroup = pod_cgroup + "/c1";
  agent_cgroup = kubepods + "/podagent/proxy";
  kubelet = directory + "/kubelet";
  for (const std::string& made : {container_cgroup, agent_cgroup, kubelet}) fs::create_directories(made);
  pin_dir = fmt::format("{}/node{}", bpf_file_system(), id);

  inside(pod, [&] {
    Fd socket(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    cookie = kernel::netns_cookie(socket.get()).value();
    write_file("/proc/sys/net/ipv6/conf/default/accept_dad", "0");
    // What lets the proxy borrow a client's address, as the warden sets it up.
    write_file("/proc/sys/net/ipv4/tcp_fwmark_accept", "1");
    write_file("/proc/sys/net/ipv4/fwmark_reflect", "1");
    ip(
        fmt::format("link set lo up\nrule add pref 50 fwmark {} lookup {}\n"
                    "route add local 0.0.0.0/0 dev lo table {}\n",
                    NM_MARK, NM_ROUTE_TABLE, NM_ROUTE_TABLE));
  });
  inside(host, [&] {
    write_file("/proc/sys/net/ipv6/conf/default/accept_dad", "0");
    ip(
        fmt::format("link set lo up\nlink add veth0 type veth peer name eth0 netns /proc/{}/fd/{}\n"
                    "addr add 10.66.0.1/24 dev veth0\naddr add 10.66.0.9/24 dev veth0\n"
                    "addr add fd66::1/64 dev veth0 nodad\nlink set veth0 up\n",
                    ::getpid(), pod.get()));
  });
  inside(pod, [&] {
    ip("addr add 10.66.0.2/24 dev eth0\naddr add fd66::2/64 dev eth0 nodad\nlink set eth0 up\n"
       "route add default via 10.66.0.1\nroute add default via fd66::1\n");
  });
  app.emplace(container_cgroup, pod.get());
  proxy.emplace(agent_cgroup, pod.get());
  stranger.emplace(directory, host.get());
  kubelet_process.emplace(kubelet, host.get());
}

World::~World() {
  if (capture_)
    if (auto done = capture_->detach_all(); !done) MESSAGE(done.error().message);
  capture_.reset();
  if (auto done = kernel::remove_pins(pin_dir); !done) MESSAGE(done.error().message);
  app.reset();
  proxy.reset();
  stranger.reset();
  kubelet_process.reset();
  // Deepest first: a cgroup directory is removed by rmdir only.
  std::vector<fs::path> all{directory};
  for (const auto& entry : fs::recursive_directory_iterator(directory))
    if (entry.is_directory()) all.push_back(entry.path());
  for (auto it = all.rbegin(); it != all.rend(); ++it) ::rmdir(it->c_str());
}

kernel::CaptureOptions World::options() const {
  return {.kubepods_cgroup = kubepods, .kubelet_cgroup = kubelet, .pin_dir = pin_dir};
}

void World::open() {
  open(options());
}

void World::open(const kernel::CaptureOptions& options) {
  auto opened = kernel::Capture::open(options);
  if (!opened) FAIL(opened.error().message);
  capture_ = std::move(*opened);
  must(capture_->add_agent(kernel::cgroup_id(agent_cgroup).value()));
  must(capture_->beat());
  // A machine that stalls must not look like a warden that has died: beaten for an hour ahead.
  Fd config(::bpf_obj_get(fmt::format("{}/v{}/maps/config", options.pin_dir, NM_ABI_VERSION).c_str()));
  const uint32_t zero = 0;
  nm_config node{};
  REQUIRE(::bpf_map_lookup_elem(config.get(), &zero, &node) == 0);
  node.heartbeat_ns += 3'600'000'000'000;
  REQUIRE(::bpf_map_update_elem(config.get(), &zero, &node, BPF_ANY) == 0);
}

void World::enrol() {
  const Addr both[] = {kPod4, kPod6};
  enrol(both);
}

void World::enrol(std::span<const Addr> addresses) {
  const SockAddr any{*Addr::parse("::"), 0};
  outbound = proxy->listen(any, AF_INET6);
  inbound = proxy->listen(any, AF_INET6);
  hbone = proxy->listen(any, AF_INET6);
  must(capture_->set_pod(cookie, addresses, NM_ENROL_OFF));
  must(capture_->steer(pod.get(), cookie));
  must(capture_->set_listeners(cookie, std::array{outbound.get(), inbound.get(), hbone.get()}));
  must(capture_->set_cgroup(kernel::cgroup_id(pod_cgroup).value(), NM_ENROL_ON));
  must(capture_->set_pod(cookie, addresses, NM_ENROL_ON));
}

Fd accept_one(int listener) {
  pollfd waiting{listener, POLLIN, 0};
  if (::poll(&waiting, 1, 20'000) != 1) return {};
  return Fd(::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC));
}

bool nobody_waits(int listener) {
  pollfd waiting{listener, POLLIN, 0};
  return ::poll(&waiting, 1, 0) == 0;
}

SockAddr local_name(int fd) {
  sockaddr_storage native{};
  socklen_t length = sizeof(native);
  if (::getsockname(fd, reinterpret_cast<sockaddr*>(&native), &length) != 0) return {};
  return SockAddr::from_native(native);
}

SockAddr peer_name(int fd) {
  sockaddr_storage native{};
  socklen_t length = sizeof(native);
  if (::getpeername(fd, reinterpret_cast<sockaddr*>(&native), &length) != 0) return {};
  return SockAddr::from_native(native);
}

}  // namespace nodemesh::test

#include "kernel/objects.h"

#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <linux/bpf.h>

#include <cstdarg>
#include <cstdio>
#include <cstring>
#include <memory>

#include "skeleton/connect.skel.h"
#include "skeleton/sockops.skel.h"
#include "skeleton/steer.skel.h"

namespace nodemesh::kernel {

const std::array<Hook, kHookCount> kHooks{{
    {"nm_connect4", BPF_CGROUP_INET4_CONNECT, false},
    {"nm_connect6", BPF_CGROUP_INET6_CONNECT, false},
    {"nm_getpeername4", BPF_CGROUP_INET4_GETPEERNAME, false},
    {"nm_getpeername6", BPF_CGROUP_INET6_GETPEERNAME, false},
    {"nm_getsockname4", BPF_CGROUP_INET4_GETSOCKNAME, false},
    {"nm_getsockname6", BPF_CGROUP_INET6_GETSOCKNAME, false},
    {"nm_pod_sockops", BPF_CGROUP_SOCK_OPS, false},
    {"nm_kubelet_sockops", BPF_CGROUP_SOCK_OPS, true},
}};

namespace {

// libbpf reports through a process-wide callback; what it says while one of these lives becomes the error's
// text.
class Heard {
 public:
  Heard() : before_(::libbpf_set_print(&Heard::print)) { text().clear(); }
  ~Heard() { ::libbpf_set_print(before_); }
  Heard(const Heard&) = delete;
  Heard& operator=(const Heard&) = delete;

  // The end of it: the verifier's verdict stands last.
  static std::string tail() {
    const std::string& all = text();
    return all.size() > kKept ? "…" + all.substr(all.size() - kKept) : all;
  }

 private:
  static constexpr size_t kKept = 1500;
  static std::string& text() {
    thread_local std::string collected;
    return collected;
  }
  static int print(libbpf_print_level level, const char* format, va_list arguments) {
    if (level == LIBBPF_DEBUG) return 0;
    char line[2048];
    std::vsnprintf(line, sizeof(line), format, arguments);
    text() += line;
    return 0;
  }
  libbpf_print_fn_t before_;
};

template <class Skeleton>
struct Destroy {
  void operator()(Skeleton* skeleton) const { Skeleton::destroy(skeleton); }
};
template <class Skeleton>
using Opened = std::unique_ptr<Skeleton, Destroy<Skeleton>>;

template <class Skeleton>
Result<Opened<Skeleton>> open_object(const char* name, const std::string& maps_dir) {
  Opened<Skeleton> object(Skeleton::open());
  if (!object) return fail_errno(fmt::format("BPF object {}: open", name));
  bpf_map* map = nullptr;
  bpf_object__for_each_map(map, object->obj) {
    if (::bpf_map__is_internal(map)) continue;
    const std::string pin = maps_dir + "/" + ::bpf_map__name(map);
    if (::bpf_map__set_pin_path(map, pin.c_str()) != 0)
      return fail_errno(fmt::format("BPF map {}: set its pin", pin));
  }
  return object;
}

template <class Skeleton>
Result<> load_object(const char* name, Skeleton& object) {
  Heard heard;
  const int error = Skeleton::load(&object);
  if (error == 0) return {};
  return fail(fmt::format("BPF object {}: the kernel refused it: {}\n{}", name, std::strerror(-error),
                          Heard::tail()));
}

Result<Fd> keep(const bpf_program* program) {
  Fd fd(::fcntl(::bpf_program__fd(program), F_DUPFD_CLOEXEC, 0));
  if (!fd)
    return fail_errno(fmt::format("BPF program {}: keep its descriptor", ::bpf_program__name(program)));
  return fd;
}

template <class Skeleton>
Result<> keep_all(const Skeleton& object, Programs& out) {
  for (size_t i = 0; i < kHookCount; i++) {
    const bpf_program* program = ::bpf_object__find_program_by_name(object.obj, kHooks[i].name);
    if (!program) continue;
    auto fd = keep(program);
    if (!fd) return std::unexpected(fd.error());
    out[i] = std::move(*fd);
  }
  return {};
}

}  // namespace

Result<Programs> load_programs(const std::string& maps_dir, uint64_t kubepods) {
  auto connect = open_object<connect_bpf>("connect", maps_dir);
  if (!connect) return std::unexpected(connect.error());
  (*connect)->rodata->nm_kubepods = kubepods;
  auto sockops = open_object<sockops_bpf>("sockops", maps_dir);
  if (!sockops) return std::unexpected(sockops.error());
  Programs programs;
  if (auto done = load_object("connect", **connect); !done) return std::unexpected(done.error());
  if (auto done = load_object("sockops", **sockops); !done) return std::unexpected(done.error());
  if (auto done = keep_all(**connect, programs); !done) return std::unexpected(done.error());
  if (auto done = keep_all(**sockops, programs); !done) return std::unexpected(done.error());
  return programs;
}

Result<Fd> load_steer(const std::string& maps_dir, uint64_t netns_cookie) {
  auto steer = open_object<steer_bpf>("steer", maps_dir);
  if (!steer) return std::unexpected(steer.error());
  (*steer)->rodata->nm_netns_cookie = netns_cookie;
  if (auto done = load_object("steer", **steer); !done) return std::unexpected(done.error());
  return keep((*steer)->progs.nm_steer);
}

}  // namespace nodemesh::kernel

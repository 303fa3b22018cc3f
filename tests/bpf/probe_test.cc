#include <linux/bpf.h>

#include <algorithm>
#include <cerrno>
#include <functional>
#include <set>

#include "bpf/world.h"
#include "doctest/doctest.h"
#include "kernel/probe.h"

namespace nodemesh::test {
namespace {

bool calls(std::span<const bpf_insn> program, int helper) {
  return std::ranges::any_of(
      program, [&](const bpf_insn& i) { return i.code == (BPF_JMP | BPF_CALL) && i.imm == helper; });
}

// A kernel that is like this one but for what a test takes away.
struct Lacking : kernel::BpfDoor {
  std::function<int(uint32_t)> map = [](uint32_t) { return 0; };
  std::function<int(uint32_t, uint32_t, std::span<const bpf_insn>)> program = [](auto...) { return 0; };
  int storage = 0, link = 0, cookie = 0;
  bool bpffs = true;

  int make_map(uint32_t type, uint32_t key, uint32_t value, uint32_t entries) override {
    const int error = map(type);
    return error ? error : BpfDoor::make_map(type, key, value, entries);
  }
  int make_socket_storage() override { return storage ? storage : BpfDoor::make_socket_storage(); }
  int load(uint32_t type, uint32_t attach_type, std::span<const bpf_insn> insns) override {
    const int error = program(type, attach_type, insns);
    return error ? error : BpfDoor::load(type, attach_type, insns);
  }
  int attach(int fd, const std::string& cgroup, uint32_t type) override {
    return link ? link : BpfDoor::attach(fd, cgroup, type);
  }
  bool in_bpffs(const std::string& path) override { return bpffs && BpfDoor::in_bpffs(path); }
  int read_netns_cookie() override { return cookie ? cookie : BpfDoor::read_netns_cookie(); }
};

// The one sentence that is said, or all of them joined.
std::string said(const kernel::CaptureOptions& options, kernel::BpfDoor& door) {
  std::string all;
  for (const std::string& sentence : kernel::check(options, door))
    all += (all.empty() ? "" : "\n") + sentence;
  return all;
}

TEST_CASE("nothing is missing on this machine") {
  World world;
  CHECK(kernel::check(world.options()).empty());
}

TEST_CASE("each missing feature of the kernel is one sentence that says what to do") {
  World world;
  const auto options = world.options();
  struct Case {
    const char* expected;
    std::function<void(Lacking&)> take;
  };
  auto refuse_type = [](uint32_t type, uint32_t attach_type, int helper) {
    return [=](Lacking& door) {
      door.program = [=](uint32_t t, uint32_t a, std::span<const bpf_insn> insns) {
        return t == type && a == attach_type && (helper == 0 || calls(insns, helper)) ? -EINVAL : 0;
      };
    };
  };
  auto refuse_map = [](uint32_t type, int error) {
    return [=](Lacking& door) { door.map = [=](uint32_t t) { return t == type ? error : 0; }; };
  };
  const Case cases[] = {
      {"CONFIG_BPF_SYSCALL=y and CONFIG_BPF_JIT=y", refuse_map(BPF_MAP_TYPE_ARRAY, -ENOSYS)},
      {"CAP_BPF and CAP_NET_ADMIN", refuse_map(BPF_MAP_TYPE_ARRAY, -EPERM)},
      {"raise the memory limit", refuse_map(BPF_MAP_TYPE_ARRAY, -ENOMEM)},
      {"LRU hash", refuse_map(BPF_MAP_TYPE_LRU_HASH, -EINVAL)},
      {"CONFIG_BPF_STREAM_PARSER=y", refuse_map(BPF_MAP_TYPE_SOCKHASH, -EINVAL)},
      {"type information (BTF)", [](Lacking& door) { door.storage = -EINVAL; }},
      {"mount -t bpf bpf /sys/fs/bpf", [](Lacking& door) { door.bpffs = false; }},
      {"without BPF_F_ALLOW_MULTI", [](Lacking& door) { door.link = -EPERM; }},
      {"refuses to attach a BPF link", [](Lacking& door) { door.link = -EINVAL; }},
      {"SO_NETNS_COOKIE, Linux 5.14", [](Lacking& door) { door.cookie = -ENOPROTOOPT; }},
      {"CONFIG_CGROUP_BPF=y and CONFIG_INET=y",
       [](Lacking& door) {
         door.program = [](uint32_t t, uint32_t, std::span<const bpf_insn> i) {
           return t == BPF_PROG_TYPE_SOCK_OPS && i.size() == 2 ? -EINVAL : 0;
         };
       }},
      {"connect programs for cgroups",
       [](Lacking& door) {
         door.program = [](uint32_t t, uint32_t a, std::span<const bpf_insn> i) {
           return t == BPF_PROG_TYPE_CGROUP_SOCK_ADDR && a == BPF_CGROUP_INET4_CONNECT && i.size() == 2
                      ? -EINVAL
                      : 0;
         };
       }},
      {"CONFIG_IPV6=y", refuse_type(BPF_PROG_TYPE_CGROUP_SOCK_ADDR, BPF_CGROUP_INET6_CONNECT, 0)},
      {"the cgroup of the caller", refuse_type(BPF_PROG_TYPE_CGROUP_SOCK_ADDR, BPF_CGROUP_INET4_CONNECT,
                                               BPF_FUNC_get_current_ancestor_cgroup_id)},
      {"connect programs the network namespace",
       refuse_type(BPF_PROG_TYPE_CGROUP_SOCK_ADDR, BPF_CGROUP_INET4_CONNECT, BPF_FUNC_get_netns_cookie)},
      {"getpeername programs", refuse_type(BPF_PROG_TYPE_CGROUP_SOCK_ADDR, BPF_CGROUP_INET4_GETPEERNAME, 0)},
      {"getsockname programs", refuse_type(BPF_PROG_TYPE_CGROUP_SOCK_ADDR, BPF_CGROUP_INET4_GETSOCKNAME, 0)},
      {"socket lookup programs", refuse_type(BPF_PROG_TYPE_SK_LOOKUP, BPF_SK_LOOKUP, 0)},
      {"operation programs the network namespace",
       refuse_type(BPF_PROG_TYPE_SOCK_OPS, BPF_CGROUP_SOCK_OPS, BPF_FUNC_get_netns_cookie)},
      {"storage from connect",
       refuse_type(BPF_PROG_TYPE_CGROUP_SOCK_ADDR, BPF_CGROUP_INET4_CONNECT, BPF_FUNC_sk_storage_get)},
      {"storage from socket operation",
       refuse_type(BPF_PROG_TYPE_SOCK_OPS, BPF_CGROUP_SOCK_OPS, BPF_FUNC_sk_storage_get)},
  };
  std::set<std::string> different;
  for (const Case& missing : cases) {
    Lacking door;
    missing.take(door);
    const std::string sentence = said(options, door);
    CAPTURE(missing.expected);
    CAPTURE(sentence);
    CHECK(sentence.find(missing.expected) != std::string::npos);
    CHECK(sentence.find('\n') == std::string::npos);
    different.insert(sentence);
  }
  CHECK(different.size() == std::size(cases));
}

TEST_CASE("a wrong directory is refused by name, with what to name instead") {
  World world;
  kernel::CaptureOptions options = world.options();
  kernel::BpfDoor door;
  const char* expected = "";
  SUBCASE("the pods' cgroup does not exist") {
    options.kubepods_cgroup += "/absent";
    expected = "/absent: No such file or directory; name an existing directory";
  }
  SUBCASE("the pods' cgroup is not cgroup2") {
    options.kubepods_cgroup = "/tmp";
    expected = "cgroup /tmp: not in a cgroup2 file system";
  }
  SUBCASE("kubelet's cgroup contains the pods'") {
    options.kubelet_cgroup = world.directory;
    expected = "every pod would pass for kubelet";
  }
  SUBCASE("kubelet's cgroup is the pods'") {
    options.kubelet_cgroup = world.kubepods;
    expected = "every pod would pass for kubelet";
  }
  SUBCASE("kubelet's cgroup does not exist") {
    options.kubelet_cgroup = world.directory + "/absent";
    expected = "/absent: No such file";
  }
  SUBCASE("the pin directory is not in a BPF file system") {
    options.pin_dir = "/tmp/nodemesh-absent/pins";
    expected = "pin directory /tmp/nodemesh-absent/pins: not in a BPF file system";
  }
  const std::string sentence = said(options, door);
  CAPTURE(sentence);
  CHECK(sentence.find(expected) != std::string::npos);
  CHECK(sentence.find('\n') == std::string::npos);
  auto opened = kernel::Capture::open(options);
  REQUIRE_FALSE(opened);
  CHECK(opened.error().message.find(expected) != std::string::npos);
}

}  // namespace
}  // namespace nodemesh::test

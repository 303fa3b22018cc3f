#include "kernel/probe.h"

#include <bpf/bpf.h>
#include <bpf/btf.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <linux/bpf.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstddef>
#include <cstring>
#include <memory>

#include "base/fd.h"
#include "kernel/cgroup.h"
#include "kernel/pins.h"

namespace nodemesh::kernel {
namespace {

constexpr const char* kFloor = "nodemesh needs Linux 5.15 or later";

constexpr bpf_insn insn(uint8_t code, uint8_t dst = 0, uint8_t src = 0, int16_t off = 0, int32_t imm = 0) {
  bpf_insn made{};
  made.code = code;
  made.dst_reg = dst & 0xf;
  made.src_reg = src & 0xf;
  made.off = off;
  made.imm = imm;
  return made;
}
constexpr bpf_insn set(uint8_t reg, int32_t value) {
  return insn(BPF_ALU64 | BPF_MOV | BPF_K, reg, 0, 0, value);
}
constexpr bpf_insn load64(uint8_t reg, uint8_t base, int16_t off) {
  return insn(BPF_LDX | BPF_MEM | BPF_DW, reg, base, off);
}
constexpr bpf_insn call(int32_t helper) {
  return insn(BPF_JMP | BPF_CALL, 0, 0, 0, helper);
}
constexpr bpf_insn leave() {
  return insn(BPF_JMP | BPF_EXIT);
}

struct Attempt {
  uint32_t program_type;
  uint32_t attach_type;
  int32_t helper;         // called with the context as its argument, or 0
  bool integer_argument;  // … or with 1
  const char* missing;    // "the kernel …"
};

// What bpf/ uses, in the order of the kernels that brought it; the first that is refused names the cause
// best.
constexpr Attempt kAttempts[] = {
    {BPF_PROG_TYPE_CGROUP_SOCK_ADDR, BPF_CGROUP_INET4_CONNECT, 0, false,
     "the kernel refuses connect programs for cgroups: it needs CONFIG_CGROUP_BPF=y"},
    {BPF_PROG_TYPE_SOCK_OPS, BPF_CGROUP_SOCK_OPS, 0, false,
     "the kernel refuses socket operation programs: it needs CONFIG_CGROUP_BPF=y and CONFIG_INET=y"},
    {BPF_PROG_TYPE_CGROUP_SOCK_ADDR, BPF_CGROUP_INET6_CONNECT, 0, false,
     "the kernel refuses connect programs for IPv6: it needs CONFIG_IPV6=y (the module will do; `modprobe "
     "ipv6`)"},
    {BPF_PROG_TYPE_CGROUP_SOCK_ADDR, BPF_CGROUP_INET4_CONNECT, BPF_FUNC_get_current_ancestor_cgroup_id, true,
     "the kernel does not tell connect programs the cgroup of the caller (Linux 5.7, CONFIG_CGROUPS=y)"},
    {BPF_PROG_TYPE_CGROUP_SOCK_ADDR, BPF_CGROUP_INET4_CONNECT, BPF_FUNC_get_netns_cookie, false,
     "the kernel does not tell connect programs the network namespace (Linux 5.7)"},
    {BPF_PROG_TYPE_CGROUP_SOCK_ADDR, BPF_CGROUP_INET4_GETPEERNAME, 0, false,
     "the kernel refuses getpeername programs (Linux 5.8)"},
    {BPF_PROG_TYPE_CGROUP_SOCK_ADDR, BPF_CGROUP_INET4_GETSOCKNAME, 0, false,
     "the kernel refuses getsockname programs (Linux 5.8)"},
    {BPF_PROG_TYPE_SK_LOOKUP, BPF_SK_LOOKUP, 0, false,
     "the kernel refuses socket lookup programs (Linux 5.9)"},
    {BPF_PROG_TYPE_SOCK_OPS, BPF_CGROUP_SOCK_OPS, BPF_FUNC_get_netns_cookie, false,
     "the kernel does not tell socket operation programs the network namespace (Linux 5.15)"},
};

int try_load(BpfDoor& door, const Attempt& attempt) {
  bpf_insn program[4];
  size_t length = 0;
  if (attempt.integer_argument) program[length++] = set(BPF_REG_1, 1);
  if (attempt.helper) program[length++] = call(attempt.helper);
  program[length++] = set(BPF_REG_0, 1);
  program[length++] = leave();
  return door.load(attempt.program_type, attempt.attach_type, {program, length});
}

// bpf_sk_storage_get(map, ctx->sk, 0, 0), at the offset that `sk` has in the context of the program type.
int try_storage(BpfDoor& door, int map_fd, uint32_t program_type, uint32_t attach_type, int16_t sk_offset) {
  const bpf_insn program[] = {load64(BPF_REG_2, BPF_REG_1, sk_offset),
                              insn(BPF_JMP | BPF_JNE | BPF_K, BPF_REG_2, 0, 2, 0),  // sock_ops: may be null
                              set(BPF_REG_0, 1),
                              leave(),
                              insn(BPF_LD | BPF_DW | BPF_IMM, BPF_REG_1, BPF_PSEUDO_MAP_FD, 0, map_fd),
                              insn(0),
                              set(BPF_REG_3, 0),
                              set(BPF_REG_4, 0),
                              call(BPF_FUNC_sk_storage_get),
                              set(BPF_REG_0, 1),
                              leave()};
  return door.load(program_type, attach_type, program);
}

using Said = std::vector<std::string>;

// What keeps every other attempt from meaning anything.
void check_rights(BpfDoor& door, Said& said) {
  Fd map(door.make_map(BPF_MAP_TYPE_ARRAY, 4, 8, 1));
  if (map) return;
  if (map.get() == -ENOSYS)
    said.push_back(fmt::format(
        "the kernel has no bpf(): it needs CONFIG_BPF_SYSCALL=y and CONFIG_BPF_JIT=y; {}", kFloor));
  else if (map.get() == -EPERM || map.get() == -EACCES)
    said.push_back(
        "bpf() is not permitted: give the warden's container CAP_BPF and CAP_NET_ADMIN, and let neither "
        "seccomp "
        "nor kernel lockdown (confidentiality mode) forbid bpf()");
  else
    said.push_back(fmt::format(
        "bpf() fails even for a plain array map: {}; raise the memory limit of the warden's container",
        std::strerror(-map.get())));
}

void check_places(const CaptureOptions& options, BpfDoor& door, Said& said) {
  if (auto fine = door.check_cgroups(options.kubepods_cgroup, options.kubelet_cgroup); !fine)
    said.push_back(fine.error().message);
  if (!door.in_bpffs(options.pin_dir))
    said.push_back(fmt::format(
        "pin directory {}: not in a BPF file system; run `mount -t bpf bpf /sys/fs/bpf` (in Kubernetes: "
        "mount the host's /sys/fs/bpf with Bidirectional propagation) and name a directory below it",
        options.pin_dir));
}

void check_maps(BpfDoor& door, Said& said) {
  if (Fd lru(door.make_map(BPF_MAP_TYPE_LRU_HASH, sizeof(nm_tuple), sizeof(nm_origin), 16)); !lru)
    said.push_back(
        fmt::format("the kernel refuses LRU hash maps: {}; {}", std::strerror(-lru.get()), kFloor));
  if (Fd hash(door.make_map(BPF_MAP_TYPE_SOCKHASH, sizeof(nm_listener_key), 8, 16)); !hash)
    said.push_back(fmt::format(
        "the kernel refuses socket hash maps: {}; it needs CONFIG_NET=y, CONFIG_INET=y and, before "
        "5.13, CONFIG_BPF_STREAM_PARSER=y",
        std::strerror(-hash.get())));
  Fd storage(door.make_socket_storage());
  if (!storage) {
    said.push_back(fmt::format(
        "the kernel refuses socket storage with type information (BTF): {}; it needs CONFIG_BPF_SYSCALL=y "
        "and Linux 5.9 (vmlinux BTF is not needed)",
        std::strerror(-storage.get())));
    return;
  }
  Fd connect(try_storage(door, storage.get(), BPF_PROG_TYPE_CGROUP_SOCK_ADDR, BPF_CGROUP_INET4_CONNECT,
                         offsetof(bpf_sock_addr, sk)));
  if (!connect)
    said.push_back(
        fmt::format("the kernel keeps socket storage from connect programs (Linux 5.8); {}", kFloor));
  Fd operations(try_storage(door, storage.get(), BPF_PROG_TYPE_SOCK_OPS, BPF_CGROUP_SOCK_OPS,
                            offsetof(bpf_sock_ops, sk)));
  if (!operations)
    said.push_back(fmt::format(
        "the kernel keeps socket storage from socket operation programs (Linux 5.9); {}", kFloor));
}

void check_programs(const CaptureOptions& options, BpfDoor& door, Said& said) {
  for (const Attempt& attempt : kAttempts) {
    Fd program(try_load(door, attempt));
    if (!program) said.push_back(fmt::format("{}; {}", attempt.missing, kFloor));
    if (!program || &attempt != &kAttempts[0]) continue;
    Fd link(door.attach(program.get(), options.kubepods_cgroup, attempt.attach_type));
    if (link || !said.empty()) continue;  // said already: the directory itself is wrong
    if (link.get() == -EPERM)
      said.push_back(fmt::format(
          "cgroup {}: a program above it (or on it) was attached without BPF_F_ALLOW_MULTI and shuts out all "
          "others; find it with `bpftool cgroup tree` and detach it",
          options.kubepods_cgroup));
    else
      said.push_back(fmt::format("cgroup {}: the kernel refuses to attach a BPF link: {}; {}",
                                 options.kubepods_cgroup, std::strerror(-link.get()), kFloor));
  }
  if (int error = door.read_netns_cookie(); error != 0)
    said.push_back(fmt::format(
        "the kernel does not tell the warden a namespace's cookie (SO_NETNS_COOKIE, Linux 5.14): {}; {}",
        std::strerror(-error), kFloor));
}

}  // namespace

int BpfDoor::make_map(uint32_t type, uint32_t key_size, uint32_t value_size, uint32_t entries) {
  const int fd =
      ::bpf_map_create(static_cast<bpf_map_type>(type), "nm_probe", key_size, value_size, entries, nullptr);
  return fd >= 0 ? fd : -errno;
}

int BpfDoor::make_socket_storage() {
  std::unique_ptr<btf, void (*)(btf*)> types(::btf__new_empty(), ::btf__free);
  if (!types) return -ENOMEM;
  const int key = ::btf__add_int(types.get(), "int", 4, BTF_INT_SIGNED);
  if (::btf__load_into_kernel(types.get()) != 0) return -errno;
  LIBBPF_OPTS(bpf_map_create_opts, options, .btf_fd = static_cast<__u32>(::btf__fd(types.get())),
              .btf_key_type_id = static_cast<__u32>(key), .btf_value_type_id = static_cast<__u32>(key),
              .map_flags = BPF_F_NO_PREALLOC);
  const int fd = ::bpf_map_create(BPF_MAP_TYPE_SK_STORAGE, "nm_probe", 4, 4, 0, &options);
  return fd >= 0 ? fd : -errno;
}

int BpfDoor::load(uint32_t program_type, uint32_t attach_type, std::span<const bpf_insn> program) {
  LIBBPF_OPTS(bpf_prog_load_opts, options, .expected_attach_type = static_cast<bpf_attach_type>(attach_type));
  const int fd = ::bpf_prog_load(static_cast<bpf_prog_type>(program_type), "nm_probe", "GPL", program.data(),
                                 program.size(), &options);
  return fd >= 0 ? fd : -errno;
}

int BpfDoor::attach(int program_fd, const std::string& cgroup, uint32_t attach_type) {
  Fd directory(::open(cgroup.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!directory) return -errno;
  const int fd =
      ::bpf_link_create(program_fd, directory.get(), static_cast<bpf_attach_type>(attach_type), nullptr);
  return fd >= 0 ? fd : -errno;
}

bool BpfDoor::in_bpffs(const std::string& path) {
  return kernel::in_bpffs(path);
}

Result<> BpfDoor::check_cgroups(const std::string& kubepods, const std::string& kubelet) {
  return kernel::check_cgroups(kubepods, kubelet);
}

int BpfDoor::read_netns_cookie() {
  Fd socket(::socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  return netns_cookie(socket.get()) ? 0 : -errno;
}

std::vector<std::string> check(const CaptureOptions& options, BpfDoor& door) {
  Said said;
  check_rights(door, said);
  if (!said.empty()) return said;
  check_places(options, door, said);
  check_maps(door, said);
  check_programs(options, door, said);
  return said;
}

std::vector<std::string> check(const CaptureOptions& options) {
  BpfDoor door;
  return check(options, door);
}

}  // namespace nodemesh::kernel

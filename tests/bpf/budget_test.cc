#include <bpf/bpf.h>
#include <bpf/libbpf.h>
#include <linux/bpf.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <map>
#include <set>
#include <string>

#include "bpf/world.h"
#include "doctest/doctest.h"
#include "skeleton/connect.skel.h"
#include "skeleton/sockops.skel.h"
#include "skeleton/steer.skel.h"

namespace nodemesh::test {
namespace {

// Instructions that the verifier may walk per program: 1.5 times what 6.18 walked when the line was written.
// A change that exceeds its line either is wrong or raises it on purpose; the kernel's limit is a million.
const std::map<std::string, uint32_t> kBudget{
    {"nm_connect4", 1500},    {"nm_connect6", 2300},   {"nm_getpeername4", 60}, {"nm_getpeername6", 90},
    {"nm_getsockname4", 60},  {"nm_getsockname6", 90}, {"nm_pod_sockops", 700}, {"nm_kubelet_socko", 400},
    {"nm_kubelet_sock", 400}, {"nm_steer", 1700},
};

bool program_info(const std::string& pin, bpf_prog_info& info) {
  Fd link(::bpf_obj_get(pin.c_str()));
  bpf_link_info link_info{};
  uint32_t length = sizeof(link_info);
  if (!link || ::bpf_obj_get_info_by_fd(link.get(), &link_info, &length) != 0) return false;
  Fd program(::bpf_prog_get_fd_by_id(link_info.prog_id));
  std::memset(&info, 0, sizeof(info));
  length = sizeof(info);
  return program && ::bpf_obj_get_info_by_fd(program.get(), &info, &length) == 0;
}

TEST_CASE("no program costs the verifier more than its budget") {
  World world;
  world.open();
  world.enrol();
  const std::string root = world.pin_dir + "/v" + std::to_string(NM_ABI_VERSION);
  for (const char* hook : {"links/nm_connect4", "links/nm_connect6", "links/nm_getpeername4",
                           "links/nm_getpeername6", "links/nm_getsockname4", "links/nm_getsockname6",
                           "links/nm_pod_sockops", "links/nm_kubelet_sockops", "steer/"}) {
    const std::string pin =
        root + "/" + hook + (std::strcmp(hook, "steer/") == 0 ? std::to_string(world.cookie) : "");
    bpf_prog_info info;
    REQUIRE(program_info(pin, info));
    if (info.verified_insns == 0) {
      MESSAGE("this kernel does not tell verified_insns (Linux 5.16): not checked");
      return;
    }
    auto limit = kBudget.find(info.name);
    REQUIRE(limit != kBudget.end());
    MESSAGE(info.name << ": " << info.verified_insns << " of " << limit->second);
    CHECK(info.verified_insns <= limit->second);
  }
}

// What Linux 5.15 offers to each program type, of what bpf/ uses: the table to extend, after a look at that
// kernel's net/core/filter.c, when a program wants more.
struct Floor {
  std::set<int> helpers;
  size_t context_size;  // of the context structure in 5.15; later fields lie beyond
  std::set<size_t> wide_only;
};

const std::map<bpf_prog_type, Floor> kFloor{
    {BPF_PROG_TYPE_CGROUP_SOCK_ADDR,
     {{BPF_FUNC_map_lookup_elem, BPF_FUNC_ktime_get_ns, BPF_FUNC_get_socket_cookie,
       BPF_FUNC_get_current_cgroup_id, BPF_FUNC_sk_release, BPF_FUNC_sk_storage_get,
       BPF_FUNC_get_netns_cookie, BPF_FUNC_get_current_ancestor_cgroup_id},
      offsetof(bpf_sock_addr, sk) + 8,
      {}}},
    {BPF_PROG_TYPE_SOCK_OPS,
     {{BPF_FUNC_map_lookup_elem, BPF_FUNC_map_update_elem, BPF_FUNC_map_delete_elem,
       BPF_FUNC_get_socket_cookie, BPF_FUNC_sock_ops_cb_flags_set, BPF_FUNC_sk_storage_get,
       BPF_FUNC_get_netns_cookie},
      offsetof(bpf_sock_ops, skb_tcp_flags) + 4,
      {}}},
    {BPF_PROG_TYPE_SK_LOOKUP,
     {{BPF_FUNC_map_lookup_elem, BPF_FUNC_sk_release, BPF_FUNC_sk_assign},
      offsetof(bpf_sk_lookup, ingress_ifindex),
      {}}},
};
const std::set<bpf_map_type> kMapTypes{BPF_MAP_TYPE_ARRAY,    BPF_MAP_TYPE_HASH,
                                       BPF_MAP_TYPE_LRU_HASH, BPF_MAP_TYPE_SK_STORAGE,
                                       BPF_MAP_TYPE_SOCKHASH, BPF_MAP_TYPE_PERCPU_ARRAY};
const std::set<bpf_attach_type> kAttachTypes{BPF_CGROUP_INET4_CONNECT,     BPF_CGROUP_INET6_CONNECT,
                                             BPF_CGROUP_INET4_GETPEERNAME, BPF_CGROUP_INET6_GETPEERNAME,
                                             BPF_CGROUP_INET4_GETSOCKNAME, BPF_CGROUP_INET6_GETSOCKNAME,
                                             BPF_CGROUP_SOCK_OPS,          BPF_SK_LOOKUP};

// Walks the instructions once, in order, following the context pointer through register copies. Every
// function of ours that takes the context takes it first, so register 1 holds it (or harmless other things)
// where a function starts.
int check_instructions(const bpf_insn* code, size_t count, const Floor& floor) {
  std::set<size_t> functions{0};
  for (size_t i = 0; i < count; i++)
    if (code[i].code == (BPF_JMP | BPF_CALL) && code[i].src_reg == BPF_PSEUDO_CALL)
      functions.insert(i + 1 + code[i].imm);
  std::set<int> context;
  int accesses = 0;
  for (size_t i = 0; i < count; i++) {
    const bpf_insn& in = code[i];
    if (i == 0) context = {1};
    if (i > 0 && functions.contains(i)) context.clear();
    const int kind = BPF_CLASS(in.code);
    if (in.code == (BPF_JMP | BPF_CALL) && in.src_reg == 0) {
      CAPTURE(in.imm);
      CHECK(floor.helpers.contains(in.imm));
    }
    if (kind == BPF_LDX && context.contains(in.src_reg)) {
      accesses++;
      CAPTURE(in.off);
      CHECK(in.off < static_cast<int>(floor.context_size));
    }
    if (kind == BPF_STX && BPF_MODE(in.code) == BPF_ATOMIC) CHECK(in.imm == BPF_ADD);
    const bool writes = kind == BPF_LDX || kind == BPF_LD || kind == BPF_ALU || kind == BPF_ALU64;
    const bool copies = in.code == (BPF_ALU64 | BPF_MOV | BPF_X) && context.contains(in.src_reg);
    if (copies)
      context.insert(in.dst_reg);
    else if (writes)
      context.erase(in.dst_reg);
    if (in.code == (BPF_JMP | BPF_CALL))
      for (int r = 0; r <= 5; r++) context.erase(r);
    if (kind == BPF_LD && BPF_SIZE(in.code) == BPF_DW) i++;
  }
  return accesses;
}

void check_object(bpf_object* object) {
  bpf_map* map = nullptr;
  bpf_object__for_each_map(map, object) CHECK(kMapTypes.contains(::bpf_map__type(map)));
  REQUIRE(::bpf_object__load(object) == 0);
  bpf_program* program = nullptr;
  bpf_object__for_each_program(program, object) {
    CAPTURE(std::string(::bpf_program__name(program)));
    CHECK(kAttachTypes.contains(::bpf_program__expected_attach_type(program)));
    auto floor = kFloor.find(::bpf_program__type(program));
    REQUIRE(floor != kFloor.end());
    CHECK(check_instructions(::bpf_program__insns(program), ::bpf_program__insn_cnt(program), floor->second) >
          0);
  }
}

TEST_CASE("the programs use nothing that Linux 5.15 lacks") {
  // The programs of getpeername and getsockname get the context before anything else; so do all the others.
  connect_bpf* connect = connect_bpf::open();
  sockops_bpf* sockops = sockops_bpf::open();
  steer_bpf* steer = steer_bpf::open();
  check_object(connect->obj);
  check_object(sockops->obj);
  check_object(steer->obj);
  connect_bpf::destroy(connect);
  sockops_bpf::destroy(sockops);
  steer_bpf::destroy(steer);
}

TEST_CASE("what the programs cost per connection") {
  World world;
  world.open();
  world.enrol();
  Fd stats(::bpf_enable_stats(BPF_STATS_RUN_TIME));
  REQUIRE(stats);
  constexpr int kConnections = 1000;
  for (int i = 0; i < kConnections; i++) {
    Connected client = world.app->connect(at("192.0.2.7:80"));
    Fd accepted = accept_one(world.outbound.get());
    REQUIRE(local_name(accepted.get()) == at("192.0.2.7:80"));
  }
  const std::string root = world.pin_dir + "/v" + std::to_string(NM_ABI_VERSION);
  uint64_t total_ns = 0;
  for (const std::string& hook :
       {std::string("links/nm_connect4"), std::string("links/nm_pod_sockops"),
        std::string("links/nm_getsockname6"), "steer/" + std::to_string(world.cookie)}) {
    bpf_prog_info info;
    REQUIRE(program_info(root + "/" + hook, info));
    MESSAGE(info.name << ": " << double(info.run_cnt) / kConnections << " runs, "
                      << info.run_time_ns / kConnections << " ns per connection");
    total_ns += info.run_time_ns;
  }
  MESSAGE("together: " << total_ns / kConnections << " ns per connection");
}

}  // namespace
}  // namespace nodemesh::test

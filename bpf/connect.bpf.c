// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/* Outbound capture: connect4/6 redirect an enrolled pod's TCP connection to its own address and a port spread
 * by the destination, and leave the destination in the socket's storage; getpeername4/6 show it to the
 * application, and getsockname4/6 show it to the proxy on the socket it accepted. Attached at the cgroup of
 * all pods. */
#include <linux/bpf.h>
#include <linux/in.h>
#include <linux/socket.h>
#include <linux/types.h>

#include <bpf/bpf_helpers.h>

#include "config.h"
#include "lib/address.h"
#include "lib/count.h"
#include "lib/pod.h"

NM_CONFIG_KUBEPODS;

enum verdict { DENY = 0, PASS = 1, REWRITE = 2 };
#define ENROL_UNKNOWN 2u

/* Readers of the context are not inlined: clang may otherwise merge the accesses of two branches into one
 * with a variable offset, which the verifier refuses ("dereference of modified ctx ptr"; clang 14,
 * kernel 6.18). */
static __noinline void read_ip6(struct bpf_sock_addr* ctx, union address* out) {
  out->words[0] = ctx->user_ip6[0];
  out->words[1] = ctx->user_ip6[1];
  out->words[2] = ctx->user_ip6[2];
  out->words[3] = ctx->user_ip6[3];
}

static __noinline void write_ip6(struct bpf_sock_addr* ctx, const union address* ip) {
  ctx->user_ip6[0] = ip->words[0];
  ctx->user_ip6[1] = ip->words[1];
  ctx->user_ip6[2] = ip->words[2];
  ctx->user_ip6[3] = ip->words[3];
}

static __always_inline int remember(struct bpf_sock_addr* ctx, const struct endpoint* dst, __u8 kind) {
  struct nm_origin* origin = bpf_sk_storage_get(&origins, ctx->sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
  if (!origin) return 0;
  __builtin_memcpy(origin->dst, &dst->ip, sizeof(origin->dst));
  origin->dport = dst->port;
  origin->kind = kind;
  origin->flags = 0;
  origin->client_cookie = bpf_get_socket_cookie(ctx);
  return 1;
}

/* A socket whose first connect failed may connect again, to somewhere that is not captured. */
static __always_inline enum verdict pass(struct bpf_sock_addr* ctx) {
  struct nm_origin* origin = bpf_sk_storage_get(&origins, ctx->sk, 0, 0);
  if (origin) origin->kind = NM_KIND_NONE;
  return PASS;
}

static __always_inline int is_agent(void) {
  __u64 id = bpf_get_current_cgroup_id();
  return bpf_map_lookup_elem(&agents, &id) != 0;
}

/* From the root of the hierarchy down to the pods' cgroup, and then at most three below it. How deep that one
 * is nobody tells us: where a node is a container itself, user space cannot see the root. */
static __always_inline __u32 cgroup_enrolment(void) {
  __u32 below = 0;
#pragma unroll
  for (int level = 0; level < NM_CGROUP_DEPTH; level++) {
    __u64 id = bpf_get_current_ancestor_cgroup_id(level);
    if (!id || below > NM_POD_CGROUP_DEPTH) break;
    if (below) {
      struct nm_cgroup* cgroup = bpf_map_lookup_elem(&cgroups, &id);
      if (cgroup) return cgroup->enrolment;
      below++;
    } else if (id == nm_kubepods) {
      below = 1;
    }
  }
  return ENROL_UNKNOWN;
}

/* Denied only while somebody is there to make the pod known, so that a node can always recover. */
static __always_inline enum verdict unknown_pod(struct bpf_sock_addr* ctx) {
  const struct nm_config* node = node_config();
  if (!node) return DENY;
  if (node->strict || (__s64)(bpf_ktime_get_ns() - node->heartbeat_ns) < (__s64)NM_HEARTBEAT_FRESH_NS)
    return drop(NM_REASON_POD_UNKNOWN, DENY);
  count(NM_COUNT_UNKNOWN_PASSED);
  return pass(ctx);
}

static __always_inline __u32 capture_port(const struct endpoint* dst) {
  return NM_CAPTURE_PORT_BASE + endpoint_hash(&dst->ip, dst->port) % NM_CAPTURE_PORT_COUNT;
}

/* The pod's own address of the destination's family, or loopback: either arrives at steer in the same
 * namespace. */
static __always_inline void choose_target(const struct nm_pod* pod, const struct endpoint* dst,
                                          struct endpoint* target) {
  int v4 = address_is_v4(&dst->ip);
  target->port = capture_port(dst);
  if (v4) {
    address_from_v4(&target->ip, bpf_htonl(0x7f000001));
  } else {
    target->ip.halves[0] = 0;
    target->ip.halves[1] = bpf_cpu_to_be64(1);
  }
#pragma unroll
  for (__u32 i = 0; i < NM_POD_ADDRESSES; i++) {
    const union address* own = (const union address*)pod->addresses[i];
    if (i < pod->address_count && address_is_v4(own) == v4) {
      target->ip = *own;
      return;
    }
  }
}

static __always_inline enum verdict capture(struct bpf_sock_addr* ctx, __u64 cookie, const struct nm_pod* pod,
                                            const struct endpoint* dst, struct endpoint* target) {
  struct bpf_sock* listener = pod ? pod_listener(cookie, NM_LISTENER_OUTBOUND, pod->workers, 0) : 0;
  if (!listener) {
    if (!fails_open()) return drop(NM_REASON_NO_LISTENER, DENY);
    count(NM_COUNT_FAIL_OPEN_PASSED);
    return pass(ctx);
  }
  bpf_sk_release(listener);
  if (!remember(ctx, dst, NM_KIND_CLIENT)) return drop(NM_REASON_MAP_FULL, DENY);
  choose_target(pod, dst, target);
  count(NM_COUNT_CAPTURED);
  return REWRITE;
}

static __always_inline enum verdict decide(struct bpf_sock_addr* ctx, const struct endpoint* dst,
                                           struct endpoint* target) {
  /* A link-local address means something on one interface only, which the proxy's sockets are not told: no
   * Service and no pod of the mesh has one. */
  if (address_is_local(&dst->ip) || address_is_link_local(&dst->ip)) return pass(ctx);
  __u64 cookie = bpf_get_netns_cookie(ctx);
  const struct nm_pod* pod = bpf_map_lookup_elem(&pods, &cookie);
  if (is_agent()) {
    if (!pod || !pod_owns(pod, &dst->ip)) return pass(ctx);
    return remember(ctx, dst, NM_KIND_PROXY) ? PASS : drop(NM_REASON_MAP_FULL, DENY);
  }
  __u32 enrolment = pod ? pod->enrolment : cgroup_enrolment();
  if (enrolment == ENROL_UNKNOWN) return unknown_pod(ctx);
  if (enrolment == NM_ENROL_OFF || (pod && pod_owns(pod, &dst->ip))) return pass(ctx);
  return capture(ctx, cookie, pod, dst, target);
}

SEC("cgroup/connect4")
int nm_connect4(struct bpf_sock_addr* ctx) {
  if (ctx->protocol != IPPROTO_TCP) return PASS;
  struct endpoint dst = {.port = bpf_ntohs(ctx->user_port)}, target = {};
  address_from_v4(&dst.ip, ctx->user_ip4);
  enum verdict verdict = decide(ctx, &dst, &target);
  if (verdict != REWRITE) return verdict == PASS;
  ctx->user_ip4 = target.ip.words[3];
  ctx->user_port = bpf_htons(target.port);
  return PASS;
}

SEC("cgroup/connect6")
int nm_connect6(struct bpf_sock_addr* ctx) {
  if (ctx->protocol != IPPROTO_TCP) return PASS;
  struct endpoint dst = {.port = bpf_ntohs(ctx->user_port)}, target = {};
  read_ip6(ctx, &dst.ip);
  enum verdict verdict = decide(ctx, &dst, &target);
  if (verdict != REWRITE) return verdict == PASS;
  write_ip6(ctx, &target.ip);
  ctx->user_port = bpf_htons(target.port);
  return PASS;
}

/* The captured destination of a socket on the asked side (made or accepted the connection); null for all
 * others. */
static __always_inline struct nm_origin* captured(struct bpf_sock_addr* ctx, __u8 side) {
  struct nm_origin* origin = bpf_sk_storage_get(&origins, ctx->sk, 0, 0);
  if (!origin || origin->kind != NM_KIND_CLIENT || (origin->flags & NM_ORIGIN_ACCEPTED) != side) return 0;
  return origin;
}

static __always_inline int show4(struct bpf_sock_addr* ctx, __u8 side) {
  struct nm_origin* origin = captured(ctx, side);
  if (!origin) return PASS;
  ctx->user_ip4 = ((const union address*)origin->dst)->words[3];
  ctx->user_port = bpf_htons(origin->dport);
  return PASS;
}

static __always_inline int show6(struct bpf_sock_addr* ctx, __u8 side) {
  struct nm_origin* origin = captured(ctx, side);
  if (!origin) return PASS;
  write_ip6(ctx, (const union address*)origin->dst);
  ctx->user_port = bpf_htons(origin->dport);
  return PASS;
}

SEC("cgroup/getpeername4")
int nm_getpeername4(struct bpf_sock_addr* ctx) {
  return show4(ctx, 0);
}

SEC("cgroup/getpeername6")
int nm_getpeername6(struct bpf_sock_addr* ctx) {
  return show6(ctx, 0);
}

SEC("cgroup/getsockname4")
int nm_getsockname4(struct bpf_sock_addr* ctx) {
  return show4(ctx, NM_ORIGIN_ACCEPTED);
}

SEC("cgroup/getsockname6")
int nm_getsockname6(struct bpf_sock_addr* ctx) {
  return show6(ctx, NM_ORIGIN_ACCEPTED);
}

char LICENSE[] SEC("license") = "GPL";

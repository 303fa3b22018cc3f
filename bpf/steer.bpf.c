// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/* Which listener gets a TCP connection that arrives in a pod's namespace. One copy is loaded per pod, because
 * sk_lookup cannot ask for the namespace's cookie. It sees connections being opened only, never packets of
 * established ones. */
#include <linux/bpf.h>
#include <linux/in.h>
#include <linux/types.h>

#include <bpf/bpf_helpers.h>

#include "config.h"
#include "lib/address.h"
#include "lib/count.h"
#include "lib/pod.h"

NM_CONFIG_NETNS_COOKIE;

#define AF_INET 2

/* Not inlined: see connect.bpf.c. */
static __noinline void read_remote(struct bpf_sk_lookup* ctx, union address* out) {
  if (ctx->family == AF_INET) {
    address_from_v4(out, ctx->remote_ip4);
    return;
  }
  out->words[0] = ctx->remote_ip6[0];
  out->words[1] = ctx->remote_ip6[1];
  out->words[2] = ctx->remote_ip6[2];
  out->words[3] = ctx->remote_ip6[3];
}

static __noinline void read_local(struct bpf_sk_lookup* ctx, union address* out) {
  if (ctx->family == AF_INET) {
    address_from_v4(out, ctx->local_ip4);
    return;
  }
  out->words[0] = ctx->local_ip6[0];
  out->words[1] = ctx->local_ip6[1];
  out->words[2] = ctx->local_ip6[2];
  out->words[3] = ctx->local_ip6[3];
}

static __always_inline int assign(struct bpf_sk_lookup* ctx, __u32 kind) {
  struct bpf_sock* listener = pod_listener(nm_netns_cookie, kind);
  if (listener) {
    /* No flags: the kernel goes on to choose within the listener's SO_REUSEPORT group. */
    long error = bpf_sk_assign(ctx, listener, 0);
    bpf_sk_release(listener);
    if (!error) return SK_PASS;
  }
  if (!fails_open()) return drop(NM_REASON_NO_LISTENER, SK_DROP);
  count(NM_COUNT_FAIL_OPEN_PASSED);
  return SK_PASS;
}

/* Kind under which this connection was published, whether here or from outside the namespace. */
static __always_inline __u32 published_kind(struct bpf_sk_lookup* ctx, const union address* remote) {
  struct nm_tuple key = {.netns_cookie = nm_netns_cookie, .dport = ctx->local_port};
  /* Two bytes: before 5.18 the field had four. */
  key.sport = bpf_ntohs(*(volatile __be16*)&ctx->remote_port);
  __builtin_memcpy(key.src, remote, sizeof(key.src));
  struct nm_origin* entry = bpf_map_lookup_elem(&published, &key);
  if (entry) return entry->kind;
  key.netns_cookie = 0;
  entry = bpf_map_lookup_elem(&published, &key);
  if (!entry) return NM_KIND_NONE;
  /* The key has no destination: the same source may be on its way to another pod's port of this number. */
  union address local;
  read_local(ctx, &local);
  return address_equal(&local, entry->dst) ? entry->kind : NM_KIND_NONE;
}

SEC("sk_lookup")
int nm_steer(struct bpf_sk_lookup* ctx) {
  if (ctx->protocol != IPPROTO_TCP) return SK_PASS;
  __u64 cookie = nm_netns_cookie;
  const struct nm_pod* pod = bpf_map_lookup_elem(&pods, &cookie);
  if (pod && pod->enrolment == NM_ENROL_OFF) return SK_PASS;

  union address remote;
  read_remote(ctx, &remote);
  __u32 kind = published_kind(ctx, &remote);
  if (kind == NM_KIND_CLIENT) return assign(ctx, NM_LISTENER_OUTBOUND);
  if (kind == NM_KIND_PROBE) count(NM_COUNT_PROBE_PASSED);
  if (kind != NM_KIND_NONE) return SK_PASS;
  if (address_is_local(&remote) || (pod && pod_owns(pod, &remote))) return SK_PASS;
  if (ctx->local_port == NM_HBONE_PORT) {
    count(NM_COUNT_STEERED_HBONE);
    return assign(ctx, NM_LISTENER_HBONE);
  }
  count(NM_COUNT_STEERED_INBOUND);
  return assign(ctx, NM_LISTENER_INBOUND);
}

char LICENSE[] SEC("license") = "GPL";

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

ADDRESS_READER(bpf_sk_lookup, remote)
ADDRESS_READER(bpf_sk_lookup, local)

/* Two bytes: before 5.18 the field had four. */
static __always_inline __u32 remote_port(struct bpf_sk_lookup* ctx) {
  return bpf_ntohs(*(volatile __be16*)&ctx->remote_port);
}

/* Each worker has a listener of its own, found here by the client's address and port. A SO_REUSEPORT group
 * would be open to any process of the pod that has our uid, as all have that run as root. */
static __always_inline int assign(struct bpf_sk_lookup* ctx, const struct nm_pod* pod, __u32 kind,
                                  const union address* remote) {
  __u32 workers = pod ? pod->workers : 0;
  __u32 port = remote_port(ctx);
  __u32 first = workers ? endpoint_hash(remote, port ^ (__u32)nm_netns_cookie << 16) % workers : 0;
  struct bpf_sock* listener = pod_listener(nm_netns_cookie, kind, workers, first);
  if (listener) {
    long error = bpf_sk_assign(ctx, listener, BPF_SK_LOOKUP_F_NO_REUSEPORT);
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
  key.sport = remote_port(ctx);
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
  __u32 listener = NM_LISTENER_INBOUND;
  switch (published_kind(ctx, &remote)) {
    case NM_KIND_NONE:
      if (address_is_local(&remote) || (pod && pod_owns(pod, &remote))) return SK_PASS;
      if (ctx->local_port == NM_HBONE_PORT) listener = NM_LISTENER_HBONE;
      count(listener == NM_LISTENER_HBONE ? NM_COUNT_STEERED_HBONE : NM_COUNT_STEERED_INBOUND);
      break;
    case NM_KIND_CLIENT:
      listener = NM_LISTENER_OUTBOUND;
      break;
    case NM_KIND_PROBE:
      count(NM_COUNT_PROBE_PASSED);
      return SK_PASS;
    default:
      return SK_PASS;
  }
  return assign(ctx, pod, listener, &remote);
}

char LICENSE[] SEC("license") = "GPL";

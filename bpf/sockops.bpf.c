// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/* Publishing connections: once the source port is known and before the SYN leaves, the tuple goes into
 * `published`; when the connection has been accepted it leaves again, and the accepted socket gets the
 * destination. nm_pod_sockops is attached at the cgroup of all pods, nm_kubelet_sockops at kubelet's. Both
 * run about 27 times per connection, so they leave on the operation first. */
#include <linux/bpf.h>
#include <linux/socket.h>
#include <linux/types.h>

#include <bpf/bpf_helpers.h>

#include "lib/address.h"
#include "lib/count.h"

#define CONTINUE 1

ADDRESS_READER(bpf_sock_ops, local)
ADDRESS_READER(bpf_sock_ops, remote)

static __always_inline __u16 remote_port(struct bpf_sock_ops* ctx) {
  return bpf_ntohl(ctx->remote_port);
}

/* The key as the connecting side sees it. */
static __always_inline void outgoing_key(struct bpf_sock_ops* ctx, __u64 cookie, struct nm_tuple* key) {
  union address local;
  read_local(ctx, &local);
  __builtin_memset(key, 0, sizeof(*key));
  __builtin_memcpy(key->src, &local, sizeof(key->src));
  key->netns_cookie = cookie;
  key->sport = ctx->local_port;
  key->dport = remote_port(ctx);
}

/* The same key as the accepting side sees it. */
static __always_inline void incoming_key(struct bpf_sock_ops* ctx, __u64 cookie, struct nm_tuple* key) {
  union address remote;
  read_remote(ctx, &remote);
  __builtin_memset(key, 0, sizeof(*key));
  __builtin_memcpy(key->src, &remote, sizeof(key->src));
  key->netns_cookie = cookie;
  key->sport = remote_port(ctx);
  key->dport = ctx->local_port;
}

static __always_inline void publish(struct bpf_sock_ops* ctx, __u64 cookie, const struct nm_origin* origin) {
  struct nm_tuple key;
  outgoing_key(ctx, cookie, &key);
  if (bpf_map_update_elem(&published, &key, origin, BPF_ANY)) drop(NM_REASON_MAP_FULL, 0);
}

/* An entry that outlives its attempt would let a stranger with the same address and port pass for the proxy,
 * so what becomes of its socket after ESTABLISHED, or instead of it, takes it away. */
static __always_inline int watch(struct bpf_sock_ops* ctx) {
  if (ctx->bpf_sock_ops_cb_flags & BPF_SOCK_OPS_STATE_CB_FLAG) return 0;
  bpf_sock_ops_cb_flags_set(ctx, ctx->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG);
  return 1;
}

static __always_inline void unwatch(struct bpf_sock_ops* ctx) {
  bpf_sock_ops_cb_flags_set(ctx, ctx->bpf_sock_ops_cb_flags & ~BPF_SOCK_OPS_STATE_CB_FLAG);
}

static __always_inline struct nm_origin* own_origin(struct bpf_sock_ops* ctx) {
  struct bpf_sock* sk = ctx->sk;
  return sk ? bpf_sk_storage_get(&origins, sk, 0, 0) : 0;
}

static __always_inline void pod_connects(struct bpf_sock_ops* ctx) {
  struct nm_origin* origin = own_origin(ctx);
  if (!origin || (origin->kind != NM_KIND_CLIENT && origin->kind != NM_KIND_PROXY)) return;
  if (origin->flags & NM_ORIGIN_ACCEPTED) return;
  publish(ctx, bpf_get_netns_cookie(ctx), origin);
  if (watch(ctx)) origin->flags |= NM_ORIGIN_WATCHED;
}

/* Who closes at once may do so before his own ACK has made the other end's socket, which must still hear
 * where it was going: an entry that is there goes with the socket only. */
static __always_inline void pod_changes_state(struct bpf_sock_ops* ctx) {
  if (ctx->args[1] == BPF_TCP_ESTABLISHED) return;
  struct nm_origin* origin = own_origin(ctx);
  if (!origin || !(origin->flags & NM_ORIGIN_WATCHED)) return;
  struct nm_tuple key;
  outgoing_key(ctx, bpf_get_netns_cookie(ctx), &key);
  struct nm_origin* entry = bpf_map_lookup_elem(&published, &key);
  if (entry && entry->client_cookie == origin->client_cookie) {
    if (ctx->args[1] != BPF_TCP_CLOSE) return;
    bpf_map_delete_elem(&published, &key);
  }
  origin->flags &= ~NM_ORIGIN_WATCHED;
  unwatch(ctx);
}

static __always_inline void pod_accepts(struct bpf_sock_ops* ctx) {
  struct nm_tuple key;
  incoming_key(ctx, bpf_get_netns_cookie(ctx), &key);
  struct nm_origin* entry = bpf_map_lookup_elem(&published, &key);
  if (!entry) {
    key.netns_cookie = 0; /* PROBE, DIRECT */
    entry = bpf_map_lookup_elem(&published, &key);
    if (!entry) return;
    union address local;
    read_local(ctx, &local);
    /* Not the one on its way to another pod's port of this number. */
    if (address_equal(&local, entry->dst)) bpf_map_delete_elem(&published, &key);
    return;
  }
  struct bpf_sock* sk = ctx->sk;
  if (sk && entry->kind == NM_KIND_CLIENT) {
    struct nm_origin* origin = bpf_sk_storage_get(&origins, sk, entry, BPF_SK_STORAGE_GET_F_CREATE);
    if (origin)
      origin->flags = NM_ORIGIN_ACCEPTED;
    else
      drop(NM_REASON_MAP_FULL, 0);
  }
  bpf_map_delete_elem(&published, &key);
}

SEC("sockops")
int nm_pod_sockops(struct bpf_sock_ops* ctx) {
  switch (ctx->op) {
    case BPF_SOCK_OPS_TCP_CONNECT_CB:
      pod_connects(ctx);
      break;
    case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
      pod_accepts(ctx);
      break;
    case BPF_SOCK_OPS_STATE_CB:
      pod_changes_state(ctx);
      break;
  }
  return CONTINUE;
}

static __always_inline void withdraw_probe(struct bpf_sock_ops* ctx) {
  struct nm_tuple key;
  outgoing_key(ctx, 0, &key);
  struct nm_origin* entry = bpf_map_lookup_elem(&published, &key);
  if (entry && entry->client_cookie == bpf_get_socket_cookie(ctx)) bpf_map_delete_elem(&published, &key);
}

static __always_inline void kubelet_connects(struct bpf_sock_ops* ctx) {
  union address remote;
  read_remote(ctx, &remote);
  struct nm_probe_key port = {.port = remote_port(ctx)};
  __builtin_memcpy(port.address, &remote, sizeof(port.address));
  if (!bpf_map_lookup_elem(&probes, &port)) return;
  struct nm_origin origin = {
      .dport = port.port, .kind = NM_KIND_PROBE, .client_cookie = bpf_get_socket_cookie(ctx)};
  __builtin_memcpy(origin.dst, &remote, sizeof(origin.dst));
  publish(ctx, 0, &origin);
  watch(ctx);
}

SEC("sockops")
int nm_kubelet_sockops(struct bpf_sock_ops* ctx) {
  switch (ctx->op) {
    case BPF_SOCK_OPS_TCP_CONNECT_CB:
      kubelet_connects(ctx);
      break;
    case BPF_SOCK_OPS_STATE_CB:
      if (ctx->args[1] != BPF_TCP_ESTABLISHED) withdraw_probe(ctx);
      break;
  }
  return CONTINUE;
}

char LICENSE[] SEC("license") = "GPL";

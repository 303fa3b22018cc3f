/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* Questions about a pod that connect and steer both ask. */
#pragma once

#include "../maps.h"
#include "address.h"

static __always_inline int pod_owns(const struct nm_pod* pod, const union address* address) {
#pragma unroll
  for (__u32 i = 0; i < NM_POD_ADDRESSES; i++)
    if (i < pod->address_count && address_equal(address, pod->addresses[i])) return 1;
  return 0;
}

/* The verifier walks every try. Listeners go all at once, with their process, so more would find no more. */
#define LISTENER_TRIES 4

/* The listener of worker `first`, else of one of the next that has one, as a referenced socket, which the
 * caller releases; null if no process holds one open. */
static __always_inline struct bpf_sock* pod_listener(__u64 netns_cookie, __u32 kind, __u32 workers,
                                                     __u32 first) {
  struct nm_listener_key key = {.netns_cookie = netns_cookie, .kind = kind, .worker = first};
  for (__u32 i = 0; i < LISTENER_TRIES && i < workers; i++) {
    struct bpf_sock* listener = bpf_map_lookup_elem(&listeners, &key);
    if (listener) return listener;
    if (++key.worker >= workers) key.worker = 0;
  }
  return 0;
}

static __always_inline const struct nm_config* node_config(void) {
  __u32 zero = 0;
  return bpf_map_lookup_elem(&config, &zero);
}

static __always_inline int fails_open(void) {
  const struct nm_config* node = node_config();
  return node && node->fail_open;
}

/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* Every map of nodemesh, pinned by its name under <pin dir>/v<NM_ABI_VERSION>/maps and so shared by all
 * programs and kept over restarts. Each says who writes and who reads it. */
#pragma once

#include "abi.h"

/* The switches of the node and the heartbeat. Written by the warden, read by connect and steer. */
struct {
  __uint(type, BPF_MAP_TYPE_ARRAY);
  __uint(max_entries, 1);
  __type(key, __u32);
  __type(value, struct nm_config);
} config SEC(".maps");

/* Cgroup ids of the proxy and the opener. Written by the warden, read by connect. */
struct {
  __uint(type, BPF_MAP_TYPE_HASH);
  __uint(max_entries, 64);
  __type(key, __u64);
  __type(value, __u8);
} agents SEC(".maps");

/* Pod cgroup id to enrolment, for pods whose namespace is not known yet. Written by the warden, read by
 * connect. */
struct {
  __uint(type, BPF_MAP_TYPE_HASH);
  __uint(max_entries, 4096);
  __type(key, __u64);
  __type(value, struct nm_cgroup);
} cgroups SEC(".maps");

/* Namespace cookie to addresses and enrolment. Written by the warden, read by connect and steer. */
struct {
  __uint(type, BPF_MAP_TYPE_HASH);
  __uint(max_entries, 4096);
  __type(key, __u64);
  __type(value, struct nm_pod);
} pods SEC(".maps");

/* Connections under way, from TCP_CONNECT_CB until they are accepted or given up. Written by sockops; read by
 * sockops and steer. LRU, so that a flood costs the oldest attempts and never stops new ones. */
struct {
  __uint(type, BPF_MAP_TYPE_LRU_HASH);
  __uint(max_entries, 65536);
  __type(key, struct nm_tuple);
  __type(value, struct nm_origin);
} published SEC(".maps");

/* What connect decided for a socket; on an accepted socket, what was asked for. Written by connect and
 * sockops, read by getpeername and getsockname. Freed with the socket. */
struct {
  __uint(type, BPF_MAP_TYPE_SK_STORAGE);
  __uint(map_flags, BPF_F_NO_PREALLOC);
  __type(key, int);
  __type(value, struct nm_origin);
} origins SEC(".maps");

/* Listening sockets by namespace cookie, kind and worker; a socket leaves by itself when its last descriptor
 * is closed, which makes the entry the sign of life. Written by the warden, read by connect and steer. */
struct {
  __uint(type, BPF_MAP_TYPE_SOCKHASH);
  __uint(max_entries, 65536);
  __type(key, struct nm_listener_key);
  __type(value, __u64);
} listeners SEC(".maps");

/* Pod ports that kubelet probes. Written by the warden, read by sockops on kubelet's cgroup. */
struct {
  __uint(type, BPF_MAP_TYPE_HASH);
  __uint(max_entries, 8192);
  __type(key, struct nm_probe_key);
  __type(value, __u8);
} probes SEC(".maps");

/* Drops by enum nm_reason. Written by every program through lib/count.h, read by the warden. */
struct {
  __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
  __uint(max_entries, 256); /* more than NM_REASON_COUNT: a new reason must not change the pinned map */
  __type(key, __u32);
  __type(value, __u64);
} drops SEC(".maps");

/* Events by enum nm_counter. Written by every program through lib/count.h, read by the warden. */
struct {
  __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
  __uint(max_entries, 64);
  __type(key, __u32);
  __type(value, __u64);
} counters SEC(".maps");

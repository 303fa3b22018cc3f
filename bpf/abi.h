/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* The structs, kinds and reasons shared by the BPF programs and the C++ agent: the only header both include.
 * Addresses have one 16-byte form, IPv4 as ::ffff:a.b.c.d. Ports are in host byte order. Changing a struct
 * here means raising NM_ABI_VERSION, which names the pin directory (/sys/fs/bpf/nodemesh/v<version>). */
#pragma once

#ifdef __bpf__
/* vmlinux-free: <linux/types.h> is included by the program before this header. */
#else
#include <linux/types.h>
#endif

#define NM_ABI_VERSION 2
#define NM_HBONE_PORT 15008
/* connect4/6 rewrites to podIP:(NM_CAPTURE_PORT_BASE + hash(destination) % NM_CAPTURE_PORT_COUNT). One fixed
 * port would end at 28k connections per pod; spread, the limit is per destination as it is natively. */
#define NM_CAPTURE_PORT_BASE 61000
#define NM_CAPTURE_PORT_COUNT 4096
#define NM_POD_ADDRESSES 4
#define NM_MAX_WORKERS 64
/* The warden beats once a second; a heartbeat older than this means that it is gone. */
#define NM_HEARTBEAT_FRESH_NS 5000000000ull
/* A pod's cgroup is one (Guaranteed) or two levels (Burstable, BestEffort) below kubepods; one more for a
 * runtime's own. */
#define NM_POD_CGROUP_DEPTH 3
/* How far below the root of the hierarchy a pod's cgroup may lie. On a host kubepods is the first or second
 * level; a node that is a container itself has its own levels above it. */
#define NM_CGROUP_DEPTH 12
/* SO_MARK of the proxy's sockets towards the application; the pod's table NM_ROUTE_TABLE delivers their
 * replies. */
#define NM_MARK 0x539
#define NM_ROUTE_TABLE 100

/* Why a connection, stream, packet or object was refused. One enumeration for the kernel's drop counters,
 * logs, metrics and replies. Values never change meaning; new ones go at the end. */
#define NM_REASONS(X)                                                                                  \
  X(NONE, "none")                                                                                      \
  /* kernel */                                                                                         \
  X(POD_UNKNOWN, "the connecting pod is not known yet and the node agent is alive")                    \
  X(NO_LISTENER, "no proxy listener is published for the pod")                                         \
  X(NO_ADDRESS, "the pod has no address of the destination's family")                                  \
  X(MAP_FULL, "a kernel map could not take the entry")                                                 \
  X(UNPUBLISHED, "the connection reached a capture listener without having been captured")             \
  /* policy */                                                                                         \
  X(POLICY_DENY, "an AuthorizationPolicy with action DENY matched")                                    \
  X(POLICY_NO_ALLOW, "ALLOW policies apply and none matched")                                          \
  X(STRICT_PLAINTEXT, "PeerAuthentication STRICT refuses plaintext")                                   \
  X(POLICY_UNSUPPORTED, "a policy that cannot be evaluated here applies, so the connection is denied") \
  X(POLICY_REVOKED, "a policy change denies the connection that was open")                             \
  /* identity and TLS */                                                                               \
  X(NO_IDENTITY, "no certificate is available for the workload")                                       \
  X(TLS_FAILED, "the TLS handshake failed")                                                            \
  X(PEER_CERT_MISSING, "the peer presented no certificate")                                            \
  X(PEER_CERT_INVALID, "the peer's certificate did not verify")                                        \
  X(PEER_ID_INVALID, "the peer's certificate does not carry exactly one valid SPIFFE identity")        \
  X(TRUST_DOMAIN, "the peer's trust domain is not ours")                                               \
  X(PEER_ID_MISMATCH, "the server's identity is not the one expected of the destination")              \
  X(ALPN_MISMATCH, "the peer did not negotiate HTTP/2 by ALPN")                                        \
  X(HANDSHAKE_TIMEOUT, "the TLS handshake did not finish in time")                                     \
  /* HBONE */                                                                                          \
  X(BAD_METHOD, "only CONNECT is served on the HBONE port")                                            \
  X(BAD_AUTHORITY, "the CONNECT authority is not ip:port")                                             \
  X(WRONG_DESTINATION, "the CONNECT authority is not this pod")                                        \
  X(LOOP, "the destination is one of the mesh's own listeners")                                        \
  X(H2_PROTOCOL, "the peer broke the HTTP/2 protocol")                                                 \
  X(H2_FLOOD, "the peer exceeded a limit on HTTP/2 frames")                                            \
  X(HEADERS_TOO_LARGE, "the header block exceeds the limit")                                           \
  X(PING_TIMEOUT, "the peer did not answer PING in time")                                              \
  X(TUNNEL_REFUSED, "the peer refused the CONNECT request")                                            \
  X(TUNNEL_LOST, "the HBONE connection was lost")                                                      \
  X(STREAM_RESET, "the peer reset the stream")                                                         \
  X(GOAWAY, "the peer is going away")                                                                  \
  /* connections */                                                                                    \
  X(NO_ROUTE, "the destination is a Service without that port")                                        \
  X(NO_ENDPOINTS, "the Service has no endpoint that may serve")                                        \
  X(PEER_UNKNOWN, "it is not known whether the destination is in the mesh")                            \
  X(CONNECT_REFUSED, "the destination refused the connection")                                         \
  X(CONNECT_TIMEOUT, "the connection could not be made in time")                                       \
  X(CONNECT_FAILED, "the connection could not be made")                                                \
  X(NO_SOCKET, "no socket could be had in the pod's network namespace")                                \
  X(PEER_RESET, "one end reset the connection")                                                        \
  X(IDLE_TIMEOUT, "the connection was idle for too long")                                              \
  X(SHUTDOWN, "the agent is stopping")                                                                 \
  X(POD_GONE, "the pod is gone")                                                                       \
  X(OVER_LIMIT, "the pod's fair share of connections or memory is used up")                            \
  X(OUT_OF_DESCRIPTORS, "the process is out of file descriptors")                                      \
  X(INTERNAL, "an internal error")                                                                     \
  /* HTTP */                                                                                           \
  X(HTTP_MALFORMED, "the message is not HTTP that every reader reads alike")

enum nm_reason {
#define NM_X(name, text) NM_REASON_##name,
  NM_REASONS(NM_X)
#undef NM_X
      NM_REASON_COUNT
};

/* Kind of a published connection tuple. */
enum nm_kind {
  NM_KIND_NONE = 0,
  NM_KIND_CLIENT = 1, /* a captured outbound connection of the pod, on its way to the outbound listener */
  NM_KIND_PROXY = 2,  /* the proxy's own connection to the application */
  NM_KIND_PROBE = 3,  /* a kubelet probe */
  NM_KIND_DIRECT = 4, /* a flow that policy has allowed to bypass the proxy */
};

/* Which listener of a pod. */
enum nm_listener {
  NM_LISTENER_OUTBOUND = 0,
  NM_LISTENER_INBOUND = 1,
  NM_LISTENER_HBONE = 2,
  NM_LISTENER_COUNT = 3,
};

enum nm_enrolment {
  NM_ENROL_OFF = 0, /* not captured */
  NM_ENROL_ON = 1,
};

struct nm_tuple { /* key of the publish map; netns_cookie is 0 for PROBE and DIRECT, whose source is elsewhere
                   */
  __u64 netns_cookie;
  __u8 src[16];
  __u16 sport;
  __u16 dport;
  __u32 pad;
};

struct nm_origin { /* value of the publish map and of the socket storage; layout kept for two minor versions
                    */
  __u8 dst[16];
  __u16 dport;
  __u8 kind;  /* enum nm_kind */
  __u8 flags; /* NM_ORIGIN_* */
  __u8 pad[4];
  __u64 client_cookie; /* socket cookie of the connecting socket */
};
#define NM_ORIGIN_ACCEPTED \
  1 /* the storage of a socket that accepted the connection, not of the one that made it */
#define NM_ORIGIN_WATCHED 2 /* we switched on state callbacks for the socket, so we switch them off */

struct nm_listener_key {
  __u64 netns_cookie;
  __u32 kind; /* enum nm_listener */
  __u32 worker;
};

struct nm_pod { /* by network namespace cookie */
  __u8 addresses[NM_POD_ADDRESSES][16];
  __u32 address_count;
  __u32 enrolment; /* enum nm_enrolment */
  __u32 workers;   /* listeners of each kind, at most NM_MAX_WORKERS; 0: none */
  __u32 pad;
};

struct nm_cgroup { /* by pod cgroup id */
  __u32 enrolment; /* enum nm_enrolment */
  __u32 pad;
};

struct nm_probe_key { /* a port of a pod that kubelet probes */
  __u8 address[16];
  __u16 port;
  __u16 pad[3];
};

struct nm_config {
  __u64 heartbeat_ns; /* CLOCK_MONOTONIC of the warden's last beat, once a second; older than 5 s = warden
                         gone */
  __u32 fail_open;    /* 1: without a listener, traffic of enrolled pods passes untouched */
  __u32 strict;       /* 1: an unknown pod is denied even while no warden is alive */
};

/* Counted in the array map `counters`, besides drops by reason. */
enum nm_counter {
  NM_COUNT_CAPTURED = 0,
  NM_COUNT_STEERED_INBOUND = 1,
  NM_COUNT_STEERED_HBONE = 2,
  NM_COUNT_PROBE_PASSED = 3,
  NM_COUNT_UNKNOWN_PASSED = 4, /* unknown pod while no warden was alive */
  NM_COUNT_FAIL_OPEN_PASSED = 5,
  NM_COUNT_COUNTERS = 6,
};

/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* The one address form of all keys: 16 bytes, IPv4 as ::ffff:a.b.c.d, network byte order. */
#pragma once

#include <bpf/bpf_endian.h>
#include <linux/bpf.h>
#include <linux/types.h>

union address {
  __u8 bytes[16];
  __u32 words[4];
  __u64 halves[2];
};

struct endpoint {
  union address ip;
  __u32 port; /* host byte order */
};

#define MAPPED_PREFIX bpf_htonl(0xffff)

static __always_inline void address_from_v4(union address* out, __u32 ip4) {
  out->halves[0] = 0;
  out->words[2] = MAPPED_PREFIX;
  out->words[3] = ip4;
}

static __always_inline int address_is_v4(const union address* a) {
  return a->halves[0] == 0 && a->words[2] == MAPPED_PREFIX;
}

static __always_inline int address_equal(const union address* a, const __u8* b) {
  const __u64* halves = (const __u64*)b;
  return a->halves[0] == halves[0] && a->halves[1] == halves[1];
}

/* Defines read_local() or read_remote() of a context. Not inlined: see connect.bpf.c. */
#define ADDRESS_READER(context, side)                                           \
  static __noinline void read_##side(struct context* ctx, union address* out) { \
    if (ctx->family == 2 /* AF_INET */) {                                       \
      address_from_v4(out, ctx->side##_ip4);                                    \
      return;                                                                   \
    }                                                                           \
    out->words[0] = ctx->side##_ip6[0];                                         \
    out->words[1] = ctx->side##_ip6[1];                                         \
    out->words[2] = ctx->side##_ip6[2];                                         \
    out->words[3] = ctx->side##_ip6[3];                                         \
  }

/* 24 well-mixed bits of an address and port: consecutive ones lie far apart. */
static __always_inline __u32 endpoint_hash(const union address* ip, __u32 port) {
  return ((ip->halves[0] ^ ip->halves[1] ^ port) * 0x9E3779B97F4A7C15ull) >> 40;
}

/* 127.0.0.0/8, ::1, and the unspecified addresses, which connect() takes to mean this host. */
static __always_inline int address_is_local(const union address* a) {
  if (address_is_v4(a)) return (a->words[3] & bpf_htonl(0xff000000)) == bpf_htonl(0x7f000000) || !a->words[3];
  return a->halves[0] == 0 && (a->halves[1] == 0 || a->halves[1] == bpf_cpu_to_be64(1));
}

/* fe80::/10. */
static __always_inline int address_is_link_local(const union address* a) {
  return (a->words[0] & bpf_htonl(0xffc00000)) == bpf_htonl(0xfe800000);
}

/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* The only way out of a program with a refusal: count the reason, return the verdict. */
#pragma once

#include "../maps.h"

static __always_inline void count(__u32 counter) {
  __u64* value = bpf_map_lookup_elem(&counters, &counter);
  if (value) ++*value; /* per CPU, and a program runs to its end on one */
}

static __always_inline int drop(__u32 reason, int verdict) {
  __u64* value = bpf_map_lookup_elem(&drops, &reason);
  if (value) ++*value;
  return verdict;
}

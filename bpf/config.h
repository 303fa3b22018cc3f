/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/* Constants that the loader sets before a program is verified, so that they cost nothing at run time. What
 * may change while programs run is in the map `config`. Each object uses the ones it needs. */
#pragma once

/* Id of the cgroup the programs are attached to. Pods' cgroups are looked for below it. */
#define NM_CONFIG_KUBEPODS const volatile __u64 nm_kubepods = 0

/* Cookie of the network namespace that this copy of the steering program is attached to: the kernel gives
 * sk_lookup no way to ask for it. */
#define NM_CONFIG_NETNS_COOKIE const volatile __u64 nm_netns_cookie = 0

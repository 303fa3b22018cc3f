// `meshctl sysdump`: what an error report needs, in one .tar.gz. It reads Secrets at no time, everything goes
// through scrub.h, and what cannot be had, for want of rights or otherwise, is named in the archive's
// index.json instead of ending the command.
#pragma once

#include <string>

#include "base/clock.h"
#include "ctl/cluster_api.h"
#include "ctl/context.h"
#include "ctl/nodes.h"

namespace nodemesh::ctl {

struct SysdumpOptions {
  std::string file;   // empty: named by the time, in the working directory
  int max_mib = 100;  // before compression
};

struct SysdumpCluster {
  ClusterApi& api;
  AskPod ask;
};

int sysdump_from(Context& context, const SysdumpCluster& cluster, const SysdumpOptions& options,
                 WallClock::time_point now);
int sysdump(Context& context, const SysdumpOptions& options);

}  // namespace nodemesh::ctl

// `meshctl enroll` and `unenroll`, with the cluster as a parameter. Command's thread.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "ctl/cluster_api.h"
#include "ctl/context.h"
#include "ctl/enrolment.h"
#include "ctl/nodes.h"

namespace nodemesh::ctl {

struct EnrolOptions {
  bool enrol = true;
  std::string ns;  // of a workload; empty: the kubeconfig's
  bool dry_run = false, wait = false;
  int timeout_s = 120;
};

struct EnrolmentCluster {
  ClusterApi& api;
  std::function<Result<Captured>()> captured;
};

int enroll_in(Context& context, const EnrolmentCluster& cluster, const EnrolOptions& options,
              const std::vector<std::string>& words);
int enroll(Context& context, EnrolOptions options, const std::vector<std::string>& words);

}  // namespace nodemesh::ctl

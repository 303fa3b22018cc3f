// What install, upgrade and uninstall are told on the command line, and the steps that they share. A cluster
// is served in one manner from installation to removal: by Helm's release, or by manifests that meshctl
// applies itself.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "ctl/cluster_api.h"
#include "ctl/context.h"

namespace nodemesh::ctl {

struct InstallOptions {
  std::string profile = "default";
  std::string helm = "helm";     // a name in $PATH, or a path
  bool no_helm = false;          // manifests although there is Helm
  std::string chart;             // file or folder; empty: what was installed beside meshctl
  std::string crds;              // file with Istio's CRDs, for manifests; the chart has its own
  std::vector<std::string> set;  // NAME=VALUE, for Helm
  bool dry_run = false;
  int wait_seconds = 300;  // 0: do not wait
  bool verify = false;     // of uninstall
};

enum class Manner { none, helm, manifests };
// By the agents' DaemonSet in `ns`.
Result<Manner> installed_manner(ClusterApi& api, const std::string& ns);

struct Installation {
  std::unique_ptr<ClusterApi> api;
  Manner manner = Manner::none;
};
// In the cluster that the command line means. The error is for cluster_failed().
Result<Installation> find_installation(const Context& context);

// How this installation is to be served; an error says why it cannot be.
struct Way {
  Manner manner = Manner::none;
  std::string helm, chart;
};
Result<Way> choose_way(const Context& context, const InstallOptions& options, Manner installed);

int install(Context& context, const InstallOptions& options);
int upgrade(Context& context, const InstallOptions& options);
int uninstall(Context& context, const InstallOptions& options);

// The global flags that Helm has too.
std::vector<std::string> helm_flags(const Context& context);

}  // namespace nodemesh::ctl

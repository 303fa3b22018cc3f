// Nodes: kernel, runtime, operating system, health, clock. What only the node itself can see (cgroups, BPF)
// its agent says when it cannot start: NM1203.
#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include "ctl/check.h"
#include "ctl/check_words.h"
#include "ctl/json_at.h"

namespace nodemesh::ctl {
namespace {

constexpr std::pair kKernelFloor{5, 15};
constexpr std::pair kKernelTested{6, 1};
// managedFields has whole seconds, and a write takes a moment.
constexpr double kClockTolerance = 5;

std::string info_of(const Json& node, const char* field) {
  return text_of(node, "status", "nodeInfo", field);
}

bool is_linux(const Json& node) {
  auto os = info_of(node, "operatingSystem");
  return os.empty() || os == "linux";
}

template <class Judge>
void for_linux_nodes(const Cluster& cluster, Judge&& judge) {
  for (const auto& node : cluster.facts.all("nodes")) {
    if (is_linux(node)) judge(node, text_of(node, "metadata", "name"));
  }
}

void kernel_too_old(const Cluster& cluster, Found& found) {
  for_linux_nodes(cluster, [&](const Json& node, const std::string& name) {
    auto version = version_in(info_of(node, "kernelVersion"));
    if (version && *version < kKernelFloor)
      found(name_of(node),
            fmt::format("kernel {} is older than 5.15; the agent does not start there",
                        info_of(node, "kernelVersion")),
            fmt::format("upgrade the node's kernel, then `kubectl get node {} -o wide`", name));
  });
}

void kernel_untested(const Cluster& cluster, Found& found) {
  for_linux_nodes(cluster, [&](const Json& node, const std::string& name) {
    auto version = version_in(info_of(node, "kernelVersion"));
    if (version && *version >= kKernelFloor && *version < kKernelTested)
      found(name_of(node),
            fmt::format("kernel {} is older than 6.1, the oldest that is tested",
                        info_of(node, "kernelVersion")),
            fmt::format("prefer a newer node image; `kubectl get node {} -o wide`", name));
  });
}

void runtime_unknown(const Cluster& cluster, Found& found) {
  for_linux_nodes(cluster, [&](const Json& node, const std::string& name) {
    auto runtime = info_of(node, "containerRuntimeVersion");
    if (runtime.empty() || runtime.starts_with("containerd://") || runtime.starts_with("cri-o://")) return;
    found(
        name_of(node),
        fmt::format("container runtime {} is not containerd or CRI-O: pods are found by these two's cgroups",
                    runtime),
        fmt::format("use one of them, or keep agents off: `kubectl describe node {}`", name));
  });
}

void not_linux(const Cluster& cluster, Found& found) {
  for (const auto& node : cluster.facts.all("nodes")) {
    if (!is_linux(node))
      found(name_of(node),
            fmt::format("it runs {}: its pods are not in the mesh", info_of(node, "operatingSystem")),
            "keep pods that need the mesh on Linux: `kubectl get pods -A -o wide`");
  }
}

void architecture_unknown(const Cluster& cluster, Found& found) {
  for_linux_nodes(cluster, [&](const Json& node, const std::string& name) {
    auto architecture = info_of(node, "architecture");
    if (architecture.empty() || architecture == "amd64") return;
    found(
        name_of(node), fmt::format("architecture {}: only amd64 is built and tested", architecture),
        fmt::format(
            "build an image there, or exclude it by agent.nodeSelector; `kubectl get node {} --show-labels`",
            name));
  });
}

// Distributions that boot with cgroup v1 unless told otherwise.
void cgroup_v1_likely(const Cluster& cluster, Found& found) {
  static constexpr std::string_view kOld[] = {
      "Ubuntu 18.04",   "Ubuntu 20.04",   "Debian GNU/Linux 10",        "CentOS Linux 7",
      "CentOS Linux 8", "Amazon Linux 2", "Red Hat Enterprise Linux 8", "Red Hat Enterprise Linux Server 7",
      "Rocky Linux 8",  "AlmaLinux 8",    "Oracle Linux Server 8"};
  for_linux_nodes(cluster, [&](const Json& node, const std::string& name) {
    auto image = info_of(node, "osImage");
    bool old = std::ranges::any_of(kOld, [&](auto one) {
      return image.starts_with(one) &&
             (image.size() == one.size() || !std::isdigit(static_cast<unsigned char>(image[one.size()])));
    });
    if (!old || image.starts_with("Amazon Linux 2023")) return;
    found(name_of(node),
          fmt::format("{} boots with cgroup v1 unless told otherwise; agents need cgroup v2", image),
          fmt::format(
              "`kubectl debug node/{} -it --image=busybox -- stat -fc %T /sys/fs/cgroup` must say cgroup2fs",
              name));
  });
}

void node_not_ready(const Cluster& cluster, Found& found) {
  for (const auto& node : cluster.facts.all("nodes")) {
    if (condition_of(node, "Ready") == "True") continue;
    auto name = text_of(node, "metadata", "name");
    found(name_of(node), "it is not ready", fmt::format("kubectl describe node {}", name));
  }
}

void node_under_pressure(const Cluster& cluster, Found& found) {
  for (const auto& node : cluster.facts.all("nodes")) {
    for (const char* what : {"MemoryPressure", "DiskPressure", "PIDPressure"}) {
      if (condition_of(node, what) == "True")
        found(name_of(node), fmt::format("it has {}: pods are evicted, agents last", what),
              fmt::format("kubectl describe node {}", text_of(node, "metadata", "name")));
    }
  }
}

void node_without_a_kernel_of_its_own(const Cluster& cluster, Found& found) {
  for (const auto& node : cluster.facts.all("nodes")) {
    bool fargate = text_of(node, "metadata", "labels", "eks.amazonaws.com/compute-type") == "fargate";
    bool virtual_kubelet = text_of(node, "metadata", "labels", "type") == "virtual-kubelet";
    if (fargate || virtual_kubelet)
      found(name_of(node), "it takes no DaemonSets: its pods cannot be in the mesh",
            fmt::format("keep pods that need the mesh elsewhere: `kubectl get pods -A --field-selector "
                        "spec.nodeName={}`",
                        text_of(node, "metadata", "name")));
  }
}

void autopilot(const Cluster& cluster, Found& found) {
  for (const auto& node : cluster.facts.all("nodes")) {
    if (text_of(node, "metadata", "name").starts_with("gk3-"))
      found(name_of(node),
            "it is a GKE Autopilot node, which refuses the agents' capabilities and host paths",
            "use a GKE Standard cluster; `kubectl get nodes -o wide`");
  }
}

// Kubelet writes its Lease's renewTime by the node's clock, the API server notes when by its own.
std::optional<double> clock_lead(const Json& lease) {
  auto written = time_in(text_of(lease, "spec", "renewTime"));
  std::optional<double> noted;
  for (const auto& entry : items_of(lease, "metadata", "managedFields")) {
    if (json_at(entry, "fieldsV1", "f:spec", "f:renewTime").is_object())
      noted = time_in(text_of(entry, "time"));
  }
  if (!written || !noted) return std::nullopt;
  return *written - *noted;
}

void clock_skew(const Cluster& cluster, Found& found) {
  for (const auto& lease : cluster.facts.all("nodeleases")) {
    auto lead = clock_lead(lease);
    if (!lead || std::abs(*lead) <= kClockTolerance) continue;
    auto name = text_of(lease, "metadata", "name");
    found("Node " + name,
          fmt::format(
              "its clock is {:.0f} s {} the API server's: certificates begin and end at another time there",
              std::abs(*lead), *lead > 0 ? "ahead of" : "behind"),
          fmt::format(
              "let chrony or systemd-timesyncd set it; `kubectl get lease {} -n kube-node-lease -o yaml`",
              name));
  }
}

using enum Severity;
const Check kChecks[] = {
    {"NM1101",
     error,
     When::always,
     "A node's kernel is older than 5.15",
     "The programs need features of 5.15; the agent says which, and does not start.",
     {"nodes"},
     kernel_too_old},
    {"NM1102",
     warning,
     When::always,
     "A node's kernel is older than 6.1",
     "5.15 has what is needed; 6.1, 6.12 and 6.18 are tested.",
     {"nodes"},
     kernel_untested},
    {"NM1103",
     error,
     When::always,
     "A node's container runtime is not known",
     "Pods are found by the cgroups that containerd and CRI-O make.",
     {"nodes"},
     runtime_unknown},
    {"NM1104",
     info,
     When::always,
     "A node does not run Linux",
     "Its pods are not in the mesh, and others talk to them plainly.",
     {"nodes"},
     not_linux},
    {"NM1105",
     warning,
     When::always,
     "A node's architecture is not tested",
     "amd64 is what is built and tested.",
     {"nodes"},
     architecture_unknown},
    {"NM1106",
     warning,
     When::always,
     "A node's distribution boots with cgroup v1",
     "Agents need cgroup v2. Boot with systemd.unified_cgroup_hierarchy=1 or use a newer image.",
     {"nodes"},
     cgroup_v1_likely},
    {"NM1107",
     warning,
     When::always,
     "A node is not ready",
     "Its agent may not be reached either.",
     {"nodes"},
     node_not_ready},
    {"NM1108",
     warning,
     When::always,
     "A node is short of memory, disk or processes",
     "Agents are evicted last, but they suffer with the rest.",
     {"nodes"},
     node_under_pressure},
    {"NM1109",
     warning,
     When::always,
     "A node takes no DaemonSets",
     "Fargate and virtual kubelets run no agents, so their pods stay outside of the mesh.",
     {"nodes"},
     node_without_a_kernel_of_its_own},
    {"NM1110",
     error,
     When::always,
     "A node is of GKE Autopilot",
     "Autopilot refuses what an agent needs to load programs.",
     {"nodes"},
     autopilot},
    {"NM1111",
     warning,
     When::always,
     "A node's clock is wrong",
     "Certificates are not valid yet, or no longer, by a clock that is off.",
     {"nodeleases"},
     clock_skew},
};

}  // namespace

std::span<const Check> node_checks() {
  return kChecks;
}

}  // namespace nodemesh::ctl

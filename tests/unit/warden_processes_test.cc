#include <doctest/doctest.h>

#include <algorithm>
#include <filesystem>
#include <fstream>

#include "warden/cgroups.h"
#include "warden/processes.h"

using namespace nodemesh;
using namespace nodemesh::warden;
namespace fs = std::filesystem;

namespace {

struct Tree {
  std::string path;
  Tree() {
    char name[] = "/tmp/nodemesh-processes-XXXXXX";
    path = ::mkdtemp(name);
  }
  ~Tree() { fs::remove_all(path); }
  void write(const std::string& file, const std::string& text) {
    fs::create_directories(fs::path(path + "/" + file).parent_path());
    std::ofstream(path + "/" + file) << text;
  }
};

}  // namespace

TEST_CASE("a pod's processes are those of its containers, whatever the runtime calls their directories") {
  for (const char* container : {"4f0c1e", "cri-containerd-4f0c1e.scope", "crio-4f0c1e.scope"}) {
    Tree tree;
    tree.write("pod/cgroup.procs", "");
    tree.write(std::string("pod/") + container + "/cgroup.procs", "17\n4711\n");
    tree.write("pod/another/deeper/cgroup.procs", "99\n");
    auto pids = HostProcesses("/proc").in_cgroup(tree.path + "/pod");
    std::ranges::sort(pids);
    CHECK(pids == std::vector<int>{17, 99, 4711});
  }
  CHECK(HostProcesses("/proc").in_cgroup("/nonexistent").empty());
}

TEST_CASE("a pod whose group is not populated has no process") {
  Tree tree;
  tree.write("cgroup.events", "populated 0\nfrozen 0\n");
  CHECK_FALSE(has_processes(tree.path));
  tree.write("cgroup.events", "populated 1\nfrozen 0\n");
  CHECK(has_processes(tree.path));
  CHECK(has_processes(tree.path + "/nowhere"));  // not known: look
}

TEST_CASE("a process belongs to a group by whole path components") {
  CHECK(is_in_cgroup("0::/kubepods/pod1/x\n", "/kubepods/pod1"));
  CHECK(is_in_cgroup("0::/kubepods/pod1\n", "/kubepods/pod1"));
  CHECK(is_in_cgroup("4:memory:/other\n1:name=systemd:/y\n0::/kubepods/pod1\n", "/kubepods/pod1"));
  CHECK_FALSE(is_in_cgroup("0::/kubepods/pod11\n", "/kubepods/pod1"));
  CHECK_FALSE(is_in_cgroup("0::/evil/kubepods/pod1\n", "/kubepods/pod1"));
  CHECK_FALSE(is_in_cgroup("4:memory:/kubepods/pod1\n0::/\n", "/kubepods/pod1"));
  CHECK_FALSE(is_in_cgroup("", "/kubepods/pod1"));
}

TEST_CASE("a directory's path in the hierarchy follows from where that is mounted") {
  const char* host =
      "25 1 0:22 / /sys rw - sysfs sysfs rw\n"
      "30 25 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";
  CHECK(cgroup_path_of(host, "/sys/fs/cgroup/kubepods.slice/x") == "/kubepods.slice/x");
  CHECK(cgroup_path_of(host, "/sys/fs/cgroups/x").empty());
  const char* container =
      "30 25 0:26 /../../.. /sys/fs/cgroup ro - cgroup2 cgroup rw\n"
      "31 25 0:26 / /host/sys/fs/cgroup rw - cgroup2 cgroup rw\n"
      "32 25 0:26 /kubepods /host\\040pods rw - cgroup2 cgroup rw\n";
  CHECK(cgroup_path_of(container, "/host/sys/fs/cgroup/kubepods/podx") == "/kubepods/podx");
  CHECK(cgroup_path_of(container, "/host pods/podx") == "/kubepods/podx");
  CHECK(cgroup_path_of("", "/x").empty());
}

TEST_CASE("kubelet is root's process of that name, and never one in a pod") {
  Tree tree;
  auto process = [&](int pid, const char* name, const char* cgroup, int user) {
    auto folder = std::to_string(pid) + "/";
    tree.write(folder + "comm", std::string(name) + "\n");
    tree.write(folder + "cgroup", "1:name=systemd:/x\n0::" + std::string(cgroup) + "\n");
    tree.write(folder + "status", "Name:\tx\nUid:\t" + std::to_string(user) + "\t0\t0\t0\n");
  };
  HostProcesses host(tree.path);
  process(10, "kubelet", "/kubepods/podx/1", 0);
  process(11, "kubelet", "/user.slice/session-1.scope", 1000);
  process(12, "sshd", "/system.slice/ssh.service", 0);
  CHECK(find_kubelet(host, "/kubepods").empty());
  process(13, "kubelet", "/", 0);  // it could not be told from anything else
  CHECK(find_kubelet(host, "/kubepods").empty());
  process(14, "k3s-server", "/system.slice/k3s.service", 0);
  CHECK(find_kubelet(host, "/kubepods") == "/system.slice/k3s.service");
}

TEST_CASE("the proxy's group is that of its user's process in our own pod") {
  Tree tree;
  tree.write("cgroup/kubepods/podx/warden/cgroup.procs", "20\n");
  tree.write("cgroup/kubepods/podx/proxy/cgroup.procs", "21\n");
  for (auto [pid, name, user] : {std::tuple{20, "warden", 0}, std::tuple{21, "proxy", 65532}}) {
    auto folder = "proc/" + std::to_string(pid) + "/";
    tree.write(folder + "cgroup", std::string("0::/kubepods/podx/") + name + "\n");
    tree.write(folder + "status", "Uid:\t" + std::to_string(user) + "\t0\t0\t0\n");
  }
  HostProcesses host(tree.path + "/proc");
  CHECK(find_user_in(host, tree.path + "/cgroup", "/kubepods/podx", 65532) == "/kubepods/podx/proxy");
  CHECK(find_user_in(host, tree.path + "/cgroup", "/kubepods/podx", 65533).empty());
  CHECK(find_user_in(host, tree.path + "/cgroup", "/kubepods/pody", 65532).empty());
}

TEST_CASE("of a group without a process it is said that none runs yet") {
  Tree tree;
  auto found = find_pod_netns(HostProcesses("/proc"), tree.path, {});
  REQUIRE(!found);
  CHECK(found.error().reason == Reason::POD_UNKNOWN);
}

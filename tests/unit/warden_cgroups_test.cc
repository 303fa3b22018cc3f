#include <doctest/doctest.h>

#include <sys/stat.h>

#include <filesystem>

#include "warden/cgroups.h"

using namespace nodemesh;
using namespace nodemesh::warden;
namespace fs = std::filesystem;

namespace {

constexpr const char* kUid = "6ba7b810-9dad-11d1-80b4-00c04fd430c8";
constexpr const char* kUnderscored = "6ba7b810_9dad_11d1_80b4_00c04fd430c8";

struct Tree {
  std::string path;
  Tree() {
    char name[] = "/tmp/nodemesh-cgroups-XXXXXX";
    path = ::mkdtemp(name);
  }
  ~Tree() { fs::remove_all(path); }
  std::string make(const std::string& below) {
    fs::create_directories(path + "/" + below);
    return path + "/" + below;
  }
};

}  // namespace

TEST_CASE("the cgroupfs driver's directories are found in every QoS class") {
  for (const char* parent : {"kubepods/", "kubepods/burstable/", "kubepods/besteffort/"}) {
    Tree tree;
    tree.make("kubepods");
    std::string made = tree.make(parent + ("pod" + std::string(kUid)));
    auto found = find_pod_cgroup(tree.path + "/kubepods", kUid);
    REQUIRE(found);
    CHECK(found->path == made);
    struct stat directory{};
    REQUIRE(::stat(made.c_str(), &directory) == 0);
    CHECK(found->id == directory.st_ino);
  }
}

TEST_CASE("the systemd driver's slices are found in every QoS class") {
  for (const char* slices :
       {"kubepods.slice/kubepods-pod", "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod",
        "kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod"}) {
    Tree tree;
    std::string made = tree.make(slices + std::string(kUnderscored) + ".slice");
    auto found = find_pod_cgroup(tree.path + "/kubepods.slice", kUid);
    REQUIRE(found);
    CHECK(found->path == made);
  }
}

TEST_CASE("a kubelet with a cgroup root of its own keeps its prefix in the slices") {
  Tree tree;
  std::string made =
      tree.make("kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-pod" +
                std::string(kUnderscored) + ".slice");
  auto found = find_pod_cgroup(tree.path + "/kubelet-kubepods.slice", kUid);
  REQUIRE(found);
  CHECK(found->path == made);
}

// Where runtimes put a container's processes, by cgroup driver; cgroup2 in all of them. The pod's directory
// is kubelet's in each, so it is the same for all runtimes.
TEST_CASE("pod and kubepods are found above a container's process in every runtime's layout") {
  const std::string id(64, 'c'), uid = kUid, underscored = kUnderscored;
  const std::string slices = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod" + underscored,
                    folders = "/kubepods/besteffort/pod" + uid;
  struct Layout {
    const char* what;
    std::string process, pod, kubepods;
  };
  const Layout layouts[] = {
      {"containerd, systemd", slices + ".slice/cri-containerd-" + id + ".scope", slices + ".slice",
       "/kubepods.slice"},
      {"containerd, systemd, Guaranteed",
       "/kubepods.slice/kubepods-pod" + underscored + ".slice/cri-containerd-" + id + ".scope",
       "/kubepods.slice/kubepods-pod" + underscored + ".slice", "/kubepods.slice"},
      {"containerd, cgroupfs", folders + "/" + id, folders, "/kubepods"},
      {"containerd, cgroupfs, Guaranteed", "/kubepods/pod" + uid + "/" + id, "/kubepods/pod" + uid,
       "/kubepods"},
      {"CRI-O with runc, systemd", slices + ".slice/crio-" + id + ".scope", slices + ".slice",
       "/kubepods.slice"},
      {"CRI-O with crun, systemd", slices + ".slice/crio-" + id + ".scope/container", slices + ".slice",
       "/kubepods.slice"},
      {"CRI-O, cgroupfs", folders + "/crio-" + id, folders, "/kubepods"},
      {"CRI-O's monitor, conmon_cgroup = pod", slices + ".slice/crio-conmon-" + id + ".scope",
       slices + ".slice", "/kubepods.slice"},
      {"CRI-O's monitor, cgroupfs", folders + "/crio-conmon-" + id, folders, "/kubepods"},
      {"systemd in the container", slices + ".slice/cri-containerd-" + id + ".scope/init.scope",
       slices + ".slice", "/kubepods.slice"},
      {"cgroupRoot of the kubelet", "/nodes/kubepods/burstable/pod" + uid + "/" + id,
       "/nodes/kubepods/burstable/pod" + uid, "/nodes/kubepods"},
      {"a static pod, whose uid is a hash", "/kubepods/burstable/pod6ba7b8109dad11d180b400c04fd430c8/" + id,
       "/kubepods/burstable/pod6ba7b8109dad11d180b400c04fd430c8", "/kubepods"},
      // Ours is the innermost where a node is itself a container of a cluster.
      {"a node in a pod",
       "/kubepods/pod1/x/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod" + underscored +
           ".slice/cri-containerd-" + id + ".scope",
       "/kubepods/pod1/x/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod" + underscored + ".slice",
       "/kubepods/pod1/x/kubelet.slice/kubelet-kubepods.slice"},
  };
  for (const auto& layout : layouts) {
    INFO(layout.what);
    CHECK(pod_above(layout.process) == layout.pod);
    CHECK(kubepods_above(layout.process) == layout.kubepods);
    Tree tree;
    std::string made = tree.make(layout.pod.substr(1));
    auto found = find_pod_cgroup(tree.path + layout.kubepods,
                                 layout.pod.contains("8109dad") ? "6ba7b8109dad11d180b400c04fd430c8" : kUid);
    REQUIRE(found);
    CHECK(found->path == made);
  }
}

TEST_CASE("what is in no pod's group has neither pod nor kubepods above it") {
  for (const char* path :
       {"/", "", "/user.slice/session-1.scope", "/system.slice/podman.service",
        "/system.slice/crio-conmon-4f0c1e.scope", "/kubepods.slice", "/kubepods/burstable",
        // A runtime whose cgroup driver is not the kubelet's: outside of kubepods, so nothing sees its pods.
        "/system.slice/containerd.service/kubepods-burstable-pod1.slice:cri-containerd:4f0c1e"}) {
    INFO(path);
    CHECK(pod_above(path).empty());
    CHECK(kubepods_above(path).empty());
  }
}

TEST_CASE("a pod without a directory, or with a file in its place, is not found") {
  Tree tree;
  tree.make("kubepods");
  CHECK_FALSE(find_pod_cgroup(tree.path + "/kubepods", kUid));
  fs::create_symlink("/dev/null", tree.path + "/kubepods/pod" + kUid);
  CHECK_FALSE(find_pod_cgroup(tree.path + "/kubepods", kUid));
}

TEST_CASE("a uid that could lead out of the tree has no candidates") {
  for (std::string_view uid : {"", "../../etc", "a/b", ".", "a b", "x\n"}) {
    CHECK(pod_cgroup_candidates("/sys/fs/cgroup/kubepods", uid).empty());
  }
  CHECK(pod_cgroup_candidates("/sys/fs/cgroup/kubepods", std::string(65, 'a')).empty());
  CHECK(pod_cgroup_candidates("/sys/fs/cgroup/kubepods", "a").size() == 3);
}

TEST_CASE("the watch tells of a pod's directory, also in a class that was made later") {
  Tree tree;
  tree.make("kubepods");
  io::Reactor reactor;
  int changes = 0;
  KubepodsWatch watch(reactor, tree.path + "/kubepods", [&] { ++changes; });
  REQUIRE(watch.start());
  auto wait_for = [&](int wanted) {
    auto deadline = Monotonic::now() + seconds(10);
    while (changes < wanted && Monotonic::now() < deadline) reactor.run_once(milliseconds(50));
    return changes >= wanted;
  };
  tree.make("kubepods/burstable");
  REQUIRE(wait_for(1));
  tree.make("kubepods/burstable/podx");
  REQUIRE(wait_for(2));
  fs::remove(tree.path + "/kubepods/burstable/podx");
  CHECK(wait_for(3));
}

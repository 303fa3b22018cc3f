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

#include "warden/cgroups.h"

#include <sys/inotify.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <fstream>

namespace nodemesh::warden {
namespace {

constexpr std::array<std::string_view, 3> kClasses{"", "burstable", "besteffort"};
constexpr std::string_view kSlice = ".slice";

// A uid comes from an object: it must stay one path component.
bool is_plain(std::string_view uid) {
  return !uid.empty() && uid.size() <= 64 && std::ranges::all_of(uid, [](char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '-' || c == '_';
  });
}

std::string_view base_name(std::string_view path) {
  while (path.ends_with('/')) path.remove_suffix(1);
  return path.substr(path.rfind('/') + 1);
}

std::string class_directory(const std::string& kubepods, std::string_view class_name) {
  if (class_name.empty()) return kubepods;
  std::string_view base = base_name(kubepods);
  if (!base.ends_with(kSlice)) return kubepods + "/" + std::string(class_name);
  std::string stem(base.substr(0, base.size() - kSlice.size()));
  return kubepods + "/" + stem + "-" + std::string(class_name) + std::string(kSlice);
}

std::string_view parent(std::string_view path) {
  return path.substr(0, std::min(path.rfind('/'), path.size()));
}

// What is named like a pod's group.
std::string_view innermost_pod(std::string_view process_cgroup) {
  for (auto path = process_cgroup; !path.empty(); path = parent(path)) {
    auto name = base_name(path);
    bool slice = name.ends_with(kSlice) && name.contains("-pod");
    if (slice || (name.starts_with("pod") && name.size() > 3)) return path;
  }
  return "";
}

}  // namespace

std::vector<std::string> pod_cgroup_candidates(const std::string& kubepods, std::string_view uid) {
  std::vector<std::string> out;
  if (!is_plain(uid)) return out;
  std::string_view base = base_name(kubepods);
  bool systemd = base.ends_with(kSlice);
  // systemd reads a dash in a slice's name as nesting, so its driver writes the uid with underscores.
  std::string name(uid);
  if (systemd) std::ranges::replace(name, '-', '_');
  for (std::string_view class_name : kClasses) {
    std::string parent = class_directory(kubepods, class_name);
    if (!systemd) {
      out.push_back(parent + "/pod" + name);
      continue;
    }
    std::string_view slice = base_name(parent);
    out.push_back(parent + "/" + std::string(slice.substr(0, slice.size() - kSlice.size())) + "-pod" + name +
                  std::string(kSlice));
  }
  return out;
}

std::optional<PodCgroup> find_pod_cgroup(const std::string& kubepods, std::string_view uid) {
  for (const std::string& path : pod_cgroup_candidates(kubepods, uid)) {
    struct stat directory{};
    if (::stat(path.c_str(), &directory) == 0 && S_ISDIR(directory.st_mode))
      return PodCgroup{path, directory.st_ino};
  }
  return std::nullopt;
}

bool has_processes(const std::string& cgroup) {
  std::ifstream events(cgroup + "/cgroup.events");
  std::string key;
  for (int value = 0; events >> key >> value;) {
    if (key == "populated") return value != 0;
  }
  return true;
}

bool has_others(const std::string& cgroup, int pid) {
  struct stat directory{};
  std::ifstream procs(cgroup + "/cgroup.procs");
  if (!procs) return ::stat(cgroup.c_str(), &directory) == 0;
  // Processes outside of our pid namespace are all 0.
  for (int other = 0; procs >> other;) {
    if (other != pid) return true;
  }
  return false;
}

std::set<uint64_t> cgroups_below(const std::string& cgroup) {
  std::set<uint64_t> out;
  std::error_code error;
  std::filesystem::recursive_directory_iterator below(
      cgroup, std::filesystem::directory_options::skip_permission_denied, error),
      end;
  for (; !error && below != end; below.increment(error)) {
    struct stat directory{};
    if (::stat(below->path().c_str(), &directory) == 0 && S_ISDIR(directory.st_mode))
      out.insert(directory.st_ino);
  }
  return out;
}

std::string pod_above(std::string_view process_cgroup) {
  return kubepods_above(process_cgroup).empty() ? "" : std::string(innermost_pod(process_cgroup));
}

std::string kubepods_above(std::string_view process_cgroup) {
  auto pod = innermost_pod(process_cgroup);
  if (pod.empty()) return "";
  bool slice = pod.ends_with(kSlice);
  std::string kubepods(parent(pod));
  auto above = base_name(parent(pod));
  for (std::string_view class_name : {kClasses[1], kClasses[2]}) {
    bool in_class =
        slice ? above.ends_with("-" + std::string(class_name) + std::string(kSlice)) : above == class_name;
    if (in_class) kubepods = parent(kubepods);
  }
  return base_name(kubepods).contains("kubepods") ? kubepods : "";
}

KubepodsWatch::KubepodsWatch(io::Reactor& reactor, std::string kubepods,
                             std::move_only_function<void()> changed)
    : reactor_(reactor), kubepods_(std::move(kubepods)), changed_(std::move(changed)) {}

KubepodsWatch::~KubepodsWatch() {
  if (inotify_) reactor_.remove(inotify_.get(), *this, true);
}

Result<> KubepodsWatch::start() {
  inotify_.reset(::inotify_init1(IN_NONBLOCK | IN_CLOEXEC));
  if (!inotify_) return fail_errno("inotify for " + kubepods_ + " (raise fs.inotify.max_user_instances)");
  watch_classes();
  return reactor_.add(inotify_.get(), *this, EPOLLIN);
}

// Adding a watch again for the same directory changes nothing, so this also picks up a class made later.
void KubepodsWatch::watch_classes() {
  for (std::string_view class_name : kClasses) {
    ::inotify_add_watch(inotify_.get(), class_directory(kubepods_, class_name).c_str(),
                        IN_CREATE | IN_DELETE | IN_MOVED_TO | IN_MOVED_FROM | IN_ONLYDIR);
  }
}

// The kernel reports a change of this file's content as a modification (cgroup-v2: cgroup.events).
void KubepodsWatch::follow(const std::string& pod_cgroup) {
  ::inotify_add_watch(inotify_.get(), (pod_cgroup + "/cgroup.events").c_str(), IN_MODIFY);
}

void KubepodsWatch::on_events(uint32_t) {
  alignas(inotify_event) std::array<char, 4096> buffer;
  bool any = false;
  while (::read(inotify_.get(), buffer.data(), buffer.size()) > 0) any = true;
  if (!any) return;
  watch_classes();
  changed_();
}

}  // namespace nodemesh::warden

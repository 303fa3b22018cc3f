#include "warden/processes.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <fstream>
#include <optional>
#include <set>
#include <sstream>

namespace nodemesh::warden {
namespace {

namespace fs = std::filesystem;

// PROC_CGROUP_INIT_INO of the kernel's include/linux/proc_ns.h.
constexpr ino_t kInitialCgroupNamespace = 0xEFFFFFFB;
// Namespaces looked into for one pod. Any process may make as many as it likes in a user namespace, and the
// warden, whose heartbeat keeps pods that nobody has named from passing, must not be held up by them.
constexpr size_t kMostNamespaces = 256;

std::string read_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream text;
  if (in) text << in.rdbuf();
  return text.str();
}

std::optional<int> number(std::string_view text) {
  int value = 0;
  auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) return std::nullopt;
  return value;
}

// mountinfo writes space, tab, newline and backslash as \040 and so on.
std::string unescape(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '\\' || i + 3 >= text.size()) {
      out += text[i];
      continue;
    }
    out += static_cast<char>((text[i + 1] - '0') * 64 + (text[i + 2] - '0') * 8 + (text[i + 3] - '0'));
    i += 3;
  }
  return out;
}

bool is_below(std::string_view path, std::string_view top) {
  if (top == "/") return path.starts_with('/');
  return path.starts_with(top) && (path.size() == top.size() || path[top.size()] == '/');
}

// Ids in `directory` and below. `hidden`: some process has no number in our pid namespace.
std::vector<int> listed(const std::string& directory, bool& hidden) {
  std::vector<int> out;
  auto read = [&](const std::string& path) {
    std::istringstream lines(read_file(path + "/cgroup.procs"));
    for (std::string line; std::getline(lines, line);) {
      auto pid = number(line);
      if (pid && *pid > 0) out.push_back(*pid);
      hidden |= pid == 0;
    }
  };
  read(directory);
  std::error_code error;
  fs::recursive_directory_iterator below(directory, fs::directory_options::skip_permission_denied, error),
      end;
  for (; !error && below != end; below.increment(error)) {
    std::error_code unused;
    if (below->is_directory(unused)) read(below->path());
  }
  return out;
}

struct Identity {
  dev_t device;
  ino_t inode;
  auto operator<=>(const Identity&) const = default;
};

std::optional<Identity> identity_of(const std::string& path) {
  struct stat file{};
  if (::stat(path.c_str(), &file) != 0) return std::nullopt;
  return Identity{file.st_dev, file.st_ino};
}

std::string join(const std::vector<Addr>& addresses) {
  std::string out;
  for (const auto& address : addresses) out += (out.empty() ? "" : ", ") + address.to_string();
  return out;
}

}  // namespace

std::string cgroup_path_of(std::string_view mountinfo, std::string_view directory) {
  std::istringstream lines{std::string(mountinfo)};
  std::string best_point, best_root;
  for (std::string line; std::getline(lines, line);) {
    std::istringstream words(line);
    std::string id, parent, device, root, point, word, kind;
    words >> id >> parent >> device >> root >> point;
    while (words >> word && word != "-") {
    }
    words >> kind;
    point = unescape(point);
    if (kind != "cgroup2" || !is_below(directory, point) || point.size() < best_point.size()) continue;
    best_point = point;
    best_root = unescape(root);
  }
  if (best_point.empty()) return "";
  std::string rest(directory.substr(best_point == "/" ? 0 : best_point.size()));
  return (best_root == "/" ? "" : best_root) + rest;
}

bool is_in_cgroup(std::string_view text, std::string_view path) {
  while (!text.empty()) {
    auto line = text.substr(0, text.find('\n'));
    text.remove_prefix(std::min(text.size(), line.size() + 1));
    if (line.starts_with("0::")) return is_below(line.substr(3), path);
  }
  return false;
}

Result<> HostProcesses::enter_host_cgroups() const {
  std::string path = proc_ + "/1/ns/cgroup";
  auto host = identity_of(path), own = identity_of("/proc/thread-self/ns/cgroup");
  if (own && (own->inode == kInitialCgroupNamespace || own == host)) return {};
  Fd there(::open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!there) return fail_errno("the host's cgroup namespace, " + path);
  if (::setns(there.get(), CLONE_NEWCGROUP) < 0)
    return fail_errno("entering the host's cgroup namespace, " + path);
  return {};
}

std::string HostProcesses::netns_path(int pid) const {
  return proc_ + "/" + std::to_string(pid) + "/ns/net";
}

std::vector<int> HostProcesses::in_cgroup(const std::string& directory) const {
  bool hidden = false;
  auto out = listed(directory, hidden);
  return hidden ? search(directory) : out;
}

// cgroup.procs says 0 for a process outside of our pid namespace; the host's procfs has them all.
std::vector<int> HostProcesses::search(const std::string& directory) const {
  std::vector<int> out;
  auto path = cgroup_path_of(read_file("/proc/self/mountinfo"), directory);
  if (path.empty()) return out;
  std::error_code error;
  for (fs::directory_iterator entry(proc_, error), end; !error && entry != end; entry.increment(error)) {
    auto pid = number(entry->path().filename().native());
    if (pid && is_in_cgroup(read_file(entry->path().native() + "/cgroup"), path)) out.push_back(*pid);
  }
  return out;
}

std::string HostProcesses::cgroup_of(int pid) const {
  std::istringstream lines(read_file(proc_ + "/" + std::to_string(pid) + "/cgroup"));
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with("0::")) return line.substr(3);
  }
  return "";
}

std::vector<int> HostProcesses::named(std::initializer_list<std::string_view> names) const {
  std::vector<int> out;
  std::error_code error;
  for (fs::directory_iterator entry(proc_, error), end; !error && entry != end; entry.increment(error)) {
    auto pid = number(entry->path().filename().native());
    if (!pid) continue;
    auto comm = read_file(entry->path().native() + "/comm");
    if (comm.ends_with('\n')) comm.pop_back();
    if (std::ranges::find(names, comm) != names.end()) out.push_back(*pid);
  }
  return out;
}

std::optional<uid_t> HostProcesses::user_of(int pid) const {
  std::istringstream lines(read_file(proc_ + "/" + std::to_string(pid) + "/status"));
  for (std::string line; std::getline(lines, line);) {
    if (line.starts_with("State:\tZ") || line.starts_with("State:\tX")) break;
    if (!line.starts_with("Uid:")) continue;
    std::istringstream words(line.substr(4));
    uid_t user = 0;
    if (words >> user) return user;
  }
  return std::nullopt;
}

std::string find_user_in(const HostProcesses& processes, const std::string& host_cgroup,
                         const std::string& pod, uid_t user) {
  for (int pid : processes.in_cgroup(host_cgroup + pod)) {
    auto path = processes.cgroup_of(pid);
    if (is_below(path, pod) && processes.user_of(pid) == user) return path;
  }
  return "";
}

std::string find_kubelet(const HostProcesses& processes, const std::string& kubepods) {
  for (int pid : processes.named({"kubelet", "k3s-server", "k3s-agent", "kubelite"})) {
    auto path = processes.cgroup_of(pid);
    if (path.size() > 1 && !is_below(path, kubepods) && processes.user_of(pid) == uid_t{0}) return path;
  }
  return "";
}

Result<FoundNamespace> find_pod_netns(const HostProcesses& processes, const std::string& cgroup,
                                      const std::vector<Addr>& addresses) {
  auto pids = processes.in_cgroup(cgroup);
  if (pids.empty()) return fail(Reason::POD_UNKNOWN, "no process runs in it yet");
  auto host = identity_of(processes.host_netns_path());
  std::set<Identity> seen;
  std::optional<FoundNamespace> found;
  Error last{Reason::POD_UNKNOWN, "its processes ended while they were looked at"};
  for (int pid : pids) {
    auto path = processes.netns_path(pid);
    auto identity = identity_of(path);
    if (!identity || !seen.insert(*identity).second) continue;
    last = {Reason::INTERNAL, "its processes are in the node's own network namespace"};
    if (identity == host) continue;
    if (seen.size() > kMostNamespaces) {
      return fail("its processes are in more than " + std::to_string(kMostNamespaces) +
                  " network namespaces: end those that make them");
    }
    auto netns = open_netns(path);
    if (!netns) return std::unexpected(std::move(netns.error()));
    auto present = addresses_in(netns->fd.get());
    if (!present) return std::unexpected(std::move(present.error()));
    bool all = std::ranges::all_of(addresses, [&](const Addr& address) {
      return std::ranges::find(*present, address) != present->end();
    });
    last.message = "no network namespace of its processes has the address " + join(addresses);
    if (!all) continue;
    // The id may be another process's by now. Asked last: it reads as much as all that was done until here.
    auto now = processes.in_cgroup(cgroup);
    if (std::ranges::find(now, pid) == now.end()) continue;
    if (found) return fail("two network namespaces of its processes have its addresses, so neither is taken");
    found = FoundNamespace{std::move(*netns), std::move(path)};
  }
  if (!found) return std::unexpected(std::move(last));
  return std::move(*found);
}

std::string find_same_netns(const HostProcesses& processes, const std::string& cgroup, const NetNs& netns) {
  for (int pid : processes.in_cgroup(cgroup)) {
    if (auto path = processes.netns_path(pid); still_names(path, netns)) return path;
  }
  return "";
}

}  // namespace nodemesh::warden

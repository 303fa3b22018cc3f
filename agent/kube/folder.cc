#include "kube/folder.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/inotify.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <memory>
#include <optional>

#include "base/log.h"
#include "kube/yaml.h"

namespace nodemesh::kube {
namespace {

constexpr milliseconds kSettle{50};
constexpr milliseconds kSettleAtMost{400};
constexpr milliseconds kRetry{500};
constexpr milliseconds kYoung{200};
constexpr seconds kStalled{5};
// More reads than a full queue of events needs; a busy writer cannot hold the reactor.
constexpr int kMaxReads = 64;
// The last writer of a name has nothing to say about the file that replaced its own: IN_EXCL_UNLINK.
constexpr uint32_t kEvents = IN_MODIFY | IN_CLOSE_WRITE | IN_MOVED_TO | IN_MOVED_FROM | IN_CREATE |
                             IN_DELETE | IN_ATTRIB | IN_DELETE_SELF | IN_MOVE_SELF | IN_ONLYDIR |
                             IN_EXCL_UNLINK;
constexpr uint32_t kWritten = IN_CLOSE_WRITE | IN_MOVED_TO | IN_MOVED_FROM | IN_DELETE;
constexpr std::string_view kDataLink = "..data";

bool is_manifest(std::string_view name) {
  if (name.starts_with('.')) return false;
  return name.ends_with(".yaml") || name.ends_with(".yml") || name.ends_with(".json");
}

Problem unreadable(std::string message) {
  return {.message = std::move(message), .fix = "make it a regular file that the agent may read"};
}

// Nothing when there is no such file. Never blocks on a fifo; reads at most one byte more than is allowed.
std::expected<std::optional<std::string>, Problem> read_file(const std::string& path) {
  Fd fd(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (!fd) {
    if (errno == ENOENT) return std::nullopt;
    return std::unexpected(unreadable(std::string("cannot be opened: ") + std::strerror(errno)));
  }
  struct stat info{};
  if (::fstat(fd.get(), &info) != 0 || !S_ISREG(info.st_mode))
    return std::unexpected(unreadable("is not a regular file"));
  std::string text;
  text.resize(std::min<size_t>(static_cast<size_t>(info.st_size), kMaxFileBytes) + 1);
  size_t filled = 0;
  while (filled < text.size()) {
    ssize_t count = ::read(fd.get(), text.data() + filled, text.size() - filled);
    if (count < 0) return std::unexpected(unreadable(std::string("cannot be read: ") + std::strerror(errno)));
    if (count == 0) break;
    filled += static_cast<size_t>(count);
    if (filled == text.size() && filled <= kMaxFileBytes)
      text.resize(std::min(filled * 2, kMaxFileBytes + 1));
  }
  text.resize(filled);
  return text;
}

// A new plain file is complete at IN_CLOSE_WRITE; half of it could be valid and mean something else. A
// symlink or a hard link has no later event.
bool is_being_written(const std::string& folder, std::string_view name) {
  struct stat info{};
  std::string path = folder + "/" + std::string(name);
  return ::lstat(path.c_str(), &info) == 0 && S_ISREG(info.st_mode) && info.st_nlink == 1;
}

// Written to less than `age` ago. A time in the future is somebody's `touch`.
bool is_younger(const std::string& path, milliseconds age) {
  struct stat info{};
  timespec now{};
  if (::stat(path.c_str(), &info) != 0 || ::clock_gettime(CLOCK_REALTIME, &now) != 0) return false;
  auto since_epoch = [](const timespec& t) {
    return seconds(t.tv_sec) + std::chrono::nanoseconds(t.tv_nsec);
  };
  auto old = since_epoch(now) - since_epoch(info.st_mtim);
  return old.count() >= 0 && old < age;
}

std::expected<std::set<std::string>, int> list_manifests(const std::string& path) {
  std::unique_ptr<DIR, int (*)(DIR*)> dir(::opendir(path.c_str()), ::closedir);
  if (!dir) return std::unexpected(errno);
  std::set<std::string> names;
  while (const dirent* entry = ::readdir(dir.get())) {
    if (is_manifest(entry->d_name)) names.emplace(entry->d_name);
  }
  return names;
}

}  // namespace

Folder::Folder(io::Reactor& reactor, std::string path, Store& store, std::move_only_function<void()> changed)
    : reactor_(reactor),
      path_(std::move(path)),
      store_(store),
      changed_(std::move(changed)),
      settle_timer_([this] { settle(); }),
      stall_timer_([this] { report_stalled(); }),
      retry_timer_([this] { retry(); }) {}

Folder::~Folder() {
  if (inotify_) reactor_.remove(inotify_.get(), *this);
}

Result<> Folder::start() {
  inotify_ = Fd(::inotify_init1(IN_NONBLOCK | IN_CLOEXEC));
  if (!inotify_) return fail_errno("no inotify instance is to be had (raise fs.inotify.max_user_instances)");
  if (auto added = reactor_.add(inotify_.get(), *this, EPOLLIN); !added) return added;
  if (auto watched = watch(); !watched) return watched;
  if (auto names = list_manifests(path_); !names) {
    return fail("the config folder " + path_ + " cannot be read: " + std::strerror(names.error()));
  }
  read_first();
  return {};
}

// What was written just before the watch may be half of a file: it is read again.
bool Folder::read_first() {
  bool changed = reload_all();
  for (const auto& name : known_) {
    if (is_younger(path_ + "/" + name, kYoung)) dirty_.insert(name);
  }
  arm_settle();
  return changed;
}

Result<> Folder::watch() {
  watch_ = ::inotify_add_watch(inotify_.get(), path_.c_str(), kEvents);
  watching_ = watch_ >= 0;
  if (watching_) return {};
  if (errno == ENOENT)
    return fail("the config folder " + path_ + " does not exist; create it or correct --config");
  if (errno == ENOTDIR) return fail("the config folder " + path_ + " is not a folder; correct --config");
  return fail_errno("the config folder " + path_ + " cannot be watched");
}

void Folder::on_events(uint32_t) {
  drain_events();
  arm_settle();
}

void Folder::arm_settle() {
  if (!all_dirty_ && dirty_.empty()) return;
  if (!settle_timer_.armed()) dirty_since_ = reactor_.now();
  // A folder that is written to all the time is still read now and then.
  if (!settle_timer_.armed() || reactor_.now() - dirty_since_ < kSettleAtMost)
    settle_timer_.arm(reactor_, kSettle);
}

void Folder::drain_events() {
  alignas(inotify_event) char buffer[16 * 1024];
  for (int reads = 0; reads < kMaxReads; ++reads) {
    ssize_t count = ::read(inotify_.get(), buffer, sizeof buffer);
    if (count <= 0) return;
    for (ssize_t offset = 0; offset < count;) {
      const auto& event = *reinterpret_cast<const inotify_event*>(buffer + offset);
      offset += static_cast<ssize_t>(sizeof event + event.len);
      if (event.mask & IN_Q_OVERFLOW) {
        all_dirty_ = true;
        writing_.clear();  // the end of a write may be among the lost events
      }
      if (event.wd != watch_) continue;  // of a watch that was given up
      if (event.mask & (IN_DELETE_SELF | IN_MOVE_SELF | IN_IGNORED | IN_UNMOUNT)) {
        lost();
        continue;
      }
      std::string_view name = event.len ? event.name : "";
      if (name == kDataLink) all_dirty_ = true;
      if (is_manifest(name)) note(std::string(name), event.mask);
    }
  }
  all_dirty_ = watching_;  // the settling reads the rest; no edge may follow for it
}

void Folder::note(const std::string& name, uint32_t mask) {
  if (mask & IN_MODIFY) {
    writing_.try_emplace(name, Writing{.since = reactor_.now()});
    if (!stall_timer_.armed()) stall_timer_.arm(reactor_, kStalled);
    return;
  }
  if (mask & kWritten) writing_.erase(name);
  if (!(mask & IN_CREATE && is_being_written(path_, name))) dirty_.insert(name);
}

void Folder::report_stalled() {
  drain_events();
  arm_settle();
  std::optional<Monotonic::time_point> next;
  for (auto& [name, writing] : writing_) {
    if (writing.reported) continue;
    if (reactor_.now() - writing.since < kStalled) {
      next = std::min(next.value_or(writing.since), writing.since);
      continue;
    }
    writing.reported = true;
    log::warn(log::Component::config,
              "a file is still being written; what was last read from it stays in force until its writer "
              "closes it or another file is moved into its place",
              {{"folder", path_}, {"file", name}});
  }
  if (next) stall_timer_.arm(reactor_, std::chrono::ceil<milliseconds>(*next + kStalled - reactor_.now()));
}

void Folder::settle() {
  drain_events();  // a file may have been truncated since
  bool changed = false;
  if (std::exchange(all_dirty_, false)) {
    dirty_.clear();
    changed = reload_all();
  } else {
    for (const auto& name : std::exchange(dirty_, {})) changed |= reload(name);
  }
  arm_settle();
  if (changed) changed_();
}

bool Folder::reload_all() {
  auto names = list_manifests(path_);
  if (!names) return false;  // gone between the event and now: lost() follows
  bool changed = false;
  for (const auto& name : known_) {
    if (!names->contains(name)) changed |= store_.remove_file(name);
  }
  std::erase_if(known_, [&](const auto& name) { return !names->contains(name); });
  for (const auto& name : *names) changed |= reload(name);
  return changed;
}

bool Folder::reload(const std::string& name) {
  if (writing_.contains(name)) return false;
  std::string path = path_ + "/" + name;
  auto text = read_file(path);
  drain_events();
  if (writing_.contains(name)) return false;  // perhaps it was read after its truncation
  if (text && *text && (*text)->empty() && known_.contains(name) && is_younger(path, kSettle)) {
    dirty_.insert(name);  // the event of a truncation comes after it
    return false;
  }
  if (!text) {
    known_.insert(name);
    return store_.fail_file(name, std::move(text.error()));
  }
  if (!*text) {
    // A folder that vanished takes nothing with it.
    struct stat info{};
    if (::stat(path_.c_str(), &info) != 0) return false;
    known_.erase(name);
    return store_.remove_file(name);
  }
  known_.insert(name);
  return store_.set_file(name, parse_manifest(**text, name));
}

void Folder::lost() {
  if (!watching_) return;
  watching_ = false;
  ::inotify_rm_watch(inotify_.get(), watch_);
  watch_ = -1;
  dirty_.clear();
  writing_.clear();
  all_dirty_ = false;
  settle_timer_.cancel();
  stall_timer_.cancel();
  log::error(log::Component::config,
             "the config folder is gone; what was read from it stays in force until it is back",
             {{"folder", path_}});
  retry_timer_.arm(reactor_, kRetry);
}

void Folder::retry() {
  if (!watch()) {
    retry_timer_.arm(reactor_, kRetry);
    return;
  }
  log::info(log::Component::config, "the config folder is back", {{"folder", path_}});
  if (read_first()) changed_();
}

}  // namespace nodemesh::kube

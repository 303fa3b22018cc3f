#include "controller/state_dir.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstdio>

#include <fmt/format.h>

namespace nodemesh::controller {
namespace {

constexpr off_t kMaxSecret = 1 << 20;

Result<> check_private(const struct stat& info, const std::string& what, int wanted) {
  if (info.st_uid != ::geteuid()) {
    return fail(fmt::format("{} belongs to uid {}, not to uid {} that runs the controller; chown it", what,
                            info.st_uid, ::geteuid()));
  }
  if ((info.st_mode & 077) != 0) {
    return fail(fmt::format("{} has mode {:04o} and guards the mesh's private key; run: chmod {:o} {}", what,
                            info.st_mode & 07777, wanted, what));
  }
  return {};
}

}  // namespace

Result<Fd> open_state_dir(const std::string& path) {
  if (::mkdir(path.c_str(), 0700) != 0 && errno != EEXIST) return fail_errno("state directory " + path);
  Fd directory(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!directory) return fail_errno("state directory " + path);
  struct stat info{};
  if (::fstat(directory.get(), &info) != 0) return fail_errno("state directory " + path);
  if (auto checked = check_private(info, path, 0700); !checked) return std::unexpected(checked.error());
  if (::flock(directory.get(), LOCK_EX | LOCK_NB) != 0) {
    return fail("state directory " + path +
                " is in use by another nodemesh-controller; stop it or give another --state-dir");
  }
  return directory;
}

Result<std::optional<std::string>> read_secret(const Fd& directory, const std::string& path,
                                               const std::string& name) {
  std::string full = path + "/" + name;
  Fd file(::openat(directory.get(), name.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
  if (!file && errno == ENOENT) return std::nullopt;
  if (!file) return fail_errno(full);
  struct stat info{};
  if (::fstat(file.get(), &info) != 0) return fail_errno(full);
  if (!S_ISREG(info.st_mode)) return fail(full + " is not a regular file");
  if (auto checked = check_private(info, full, 0600); !checked) return std::unexpected(checked.error());
  if (info.st_size > kMaxSecret) return fail(full + " is larger than 1 MiB");
  std::string out(static_cast<size_t>(info.st_size), '\0');
  ssize_t got = ::read(file.get(), out.data(), out.size());
  if (got < 0 || static_cast<size_t>(got) != out.size()) return fail_errno(full);
  return out;
}

Result<> write_secret(const Fd& directory, const std::string& path, const std::string& name,
                      std::string_view bytes) {
  std::string full = path + "/" + name, draft = name + ".new";
  Fd file(
      ::openat(directory.get(), draft.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!file) return fail_errno(full);
  if (::fchmod(file.get(), 0600) != 0) return fail_errno(full);  // a draft left by a crash may have any mode
  ssize_t put = ::write(file.get(), bytes.data(), bytes.size());
  if (put < 0 || static_cast<size_t>(put) != bytes.size() || ::fsync(file.get()) != 0)
    return fail_errno(full);
  if (::renameat(directory.get(), draft.c_str(), directory.get(), name.c_str()) != 0) return fail_errno(full);
  if (::fsync(directory.get()) != 0) return fail_errno(full);
  return {};
}

}  // namespace nodemesh::controller

#include "ctl/archive.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include <fmt/format.h>

#include "base/fd.h"

namespace nodemesh::ctl {
namespace {

constexpr size_t kBlock = 512;

// One header block; numbers are octal text that ends with NUL.
std::string header(std::string_view prefix, std::string_view name, size_t size, int64_t time) {
  std::string block(kBlock, '\0');
  auto put = [&](size_t at, std::string_view text) { std::ranges::copy(text, block.begin() + at); };
  put(0, name);
  put(100, "0000600");
  put(108, "0000000");
  put(116, "0000000");
  put(124, fmt::format("{:011o}", size));
  put(136, fmt::format("{:011o}", time));
  put(148, "        ");  // the checksum is taken with blanks in its place
  put(156, "0");
  put(257, std::string_view("ustar\0"
                            "00",
                            8));
  put(345, prefix);
  unsigned sum = 0;
  for (char c : block) sum += static_cast<unsigned char>(c);
  put(148, fmt::format("{:06o}", sum));
  block[154] = '\0';
  return block;
}

// Never an inode that somebody else has made ready: its mode and readers would be theirs.
Fd create_new(const std::string& path) {
  constexpr int kFlags = O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC;
  Fd fd(::open(path.c_str(), kFlags, 0600));
  struct stat there{};
  bool replace = !fd && errno == EEXIST && ::lstat(path.c_str(), &there) == 0 && S_ISREG(there.st_mode);
  if (!replace || ::unlink(path.c_str()) != 0) return fd;
  return Fd(::open(path.c_str(), kFlags, 0600));
}

}  // namespace

bool Archive::can_hold(std::string_view name) {
  size_t slash = name.rfind('/');
  if (slash != name.npos && slash > 150) return false;
  if (name.size() - (slash == name.npos ? 0 : slash + 1) > 99) return false;
  if (!std::ranges::all_of(name, [](char c) { return c > ' ' && c < 0x7f && c != '\\'; })) return false;
  for (size_t at = 0; at <= name.size();) {
    auto part = name.substr(at, name.find('/', at) - at);
    if (part.empty() || part == "." || part == "..") return false;
    at += part.size() + 1;
  }
  return true;
}

Result<Archive> Archive::create(const std::string& path, WallClock::time_point now) {
  Fd fd = create_new(path);
  if (!fd) return fail_errno("cannot write " + path);
  File file(gzdopen(fd.get(), "wb6"));
  if (!file) return fail("cannot write " + path + ": no memory");
  (void)fd.release();  // the stream's now
  auto since = std::chrono::duration_cast<seconds>(now.time_since_epoch()).count();
  return Archive(std::move(file), since);
}

Result<> Archive::write(std::string_view bytes) {
  while (!bytes.empty()) {
    auto part = static_cast<unsigned>(std::min<size_t>(bytes.size(), 1 << 20));
    if (gzwrite(file_.get(), bytes.data(), part) != static_cast<int>(part)) {
      int code = 0;
      std::string why = gzerror(file_.get(), &code);
      return fail("the archive cannot be written: " + (code == Z_ERRNO ? std::strerror(errno) : why));
    }
    bytes.remove_prefix(part);
  }
  return {};
}

Result<> Archive::add(const std::string& name, std::string_view bytes) {
  size_t slash = name.rfind('/');
  std::string_view whole = name, prefix = slash == name.npos ? "" : whole.substr(0, slash);
  std::string_view last = slash == name.npos ? whole : whole.substr(slash + 1);
  if (!can_hold(name)) return fail("no file can be called " + name);
  if (auto head = write(header(prefix, last, bytes.size(), time_)); !head) return head;
  if (auto body = write(bytes); !body) return body;
  return write(std::string((kBlock - bytes.size() % kBlock) % kBlock, '\0'));
}

Result<> Archive::finish() {
  if (auto end = write(std::string(2 * kBlock, '\0')); !end) return end;
  if (gzclose(file_.release()) != Z_OK)
    return fail("the archive cannot be written to its end: is the disk full?");
  return {};
}

}  // namespace nodemesh::ctl

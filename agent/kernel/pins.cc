#include "kernel/pins.h"

#include <fmt/format.h>
#include <linux/magic.h>
#include <sys/vfs.h>

#include <charconv>
#include <filesystem>
#include <system_error>

#include "kernel/capture.h"
#include "kernel/link.h"

namespace nodemesh::kernel {
namespace fs = std::filesystem;
namespace {

std::vector<std::string> names_in(const std::string& directory) {
  std::vector<std::string> names;
  std::error_code error;
  for (fs::directory_iterator it(directory, error), end; !error && it != end; it.increment(error))
    names.push_back(it->path().filename());
  return names;
}

Result<> remove_links(const std::string& directory) {
  for (const std::string& name : names_in(directory)) {
    const std::string pin = directory + "/" + name;
    auto link = Link::open(pin);
    if (!link) return std::unexpected(link.error());
    if (auto gone = link->detach(); !gone) return gone;
  }
  return {};
}

}  // namespace

Pins Pins::of(const std::string& pin_dir) {
  return {fmt::format("{}/v{}", pin_dir, NM_ABI_VERSION)};
}

std::string Pins::steer(uint64_t netns_cookie) const {
  return fmt::format("{}/{}", steer(), netns_cookie);
}

Result<> Pins::make(const std::string& pin_dir) const {
  if (!in_bpffs(pin_dir))
    return fail(fmt::format(
        "pin directory {}: not in a BPF file system; run `mount -t bpf bpf /sys/fs/bpf` and name a "
        "directory below it",
        pin_dir));
  for (const std::string& directory : {maps(), links(), steer()}) {
    std::error_code error;
    fs::create_directories(directory, error);
    if (error) return fail(fmt::format("pin directory {}: {}", directory, error.message()));
  }
  return {};
}

std::vector<uint64_t> Pins::steered() const {
  std::vector<uint64_t> cookies;
  for (const std::string& name : names_in(steer())) {
    uint64_t cookie = 0;
    auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), cookie);
    if (error == std::errc{} && end == name.data() + name.size()) cookies.push_back(cookie);
  }
  return cookies;
}

Result<> Pins::remove() const {
  // Outbound first: what is still steered is then no longer redirected to a listener about to disappear.
  if (auto done = remove_links(links()); !done) return done;
  if (auto done = remove_links(steer()); !done) return done;
  std::error_code error;
  for (const std::string& name : names_in(maps())) {
    fs::remove(maps() + "/" + name, error);
    if (error) return fail(fmt::format("BPF map {}/{}: unpin: {}", maps(), name, error.message()));
  }
  for (const std::string& directory : {maps(), links(), steer(), root}) {
    fs::remove(directory, error);
    if (error) return fail(fmt::format("pin directory {}: remove: {}", directory, error.message()));
  }
  return {};
}

bool in_bpffs(const std::string& path) {
  fs::path at(path);
  struct statfs mounted{};
  while (::statfs(at.c_str(), &mounted) != 0) {
    if (!at.has_parent_path() || at.parent_path() == at) return false;
    at = at.parent_path();
  }
  return mounted.f_type == BPF_FS_MAGIC;
}

Result<> remove_pins(const std::string& pin_dir) {
  for (const std::string& name : names_in(pin_dir)) {
    if (!name.starts_with('v')) continue;
    if (auto done = Pins{pin_dir + "/" + name}.remove(); !done) return done;
  }
  std::error_code error;
  fs::remove(pin_dir, error);  // may be shared with others: leaving it is fine
  return {};
}

}  // namespace nodemesh::kernel

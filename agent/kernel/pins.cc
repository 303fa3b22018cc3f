#include "kernel/pins.h"

#include <bpf/bpf.h>
#include <fmt/format.h>
#include <linux/magic.h>
#include <sys/vfs.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <charconv>
#include <filesystem>
#include <system_error>
#include <utility>

#include "base/fd.h"
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

std::vector<Pins> Pins::of_other_versions(const std::string& pin_dir) {
  std::vector<Pins> others;
  const std::string own = of(pin_dir).root;
  for (const std::string& name : names_in(pin_dir)) {
    Pins other{pin_dir + "/" + name};
    bool version = name.size() > 1 && name[0] == 'v' && std::all_of(name.begin() + 1, name.end(), ::isdigit);
    if (version && other.root != own) others.push_back(std::move(other));
  }
  return others;
}

Result<> Pins::share_map(const Pins& other, const char* name) const {
  const std::string from = other.maps() + "/" + name, to = maps() + "/" + name;
  Fd map(::bpf_obj_get(from.c_str()));
  if (!map && errno == ENOENT) return {};
  if (!map) return fail_errno(fmt::format("BPF map {}: open the pin", from));
  if (::bpf_obj_pin(map.get(), to.c_str()) == 0 || errno == EEXIST) return {};
  return fail_errno(fmt::format("BPF map {}: pin", to));
}

Result<> Pins::take_over(const Pins& other) const {
  std::error_code error;
  for (const auto& [from, to] : {std::pair(other.links(), links()), std::pair(other.steer(), steer())}) {
    for (const std::string& name : names_in(from)) {
      // Interrupted before, it may be here already; then the other one would act beside it.
      if (fs::exists(to + "/" + name, error)) continue;
      fs::rename(from + "/" + name, to + "/" + name, error);
      if (error) return fail(fmt::format("link {}/{}: move to {}: {}", from, name, to, error.message()));
    }
  }
  return other.remove();
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
  if (auto done = Pins::of(pin_dir).remove(); !done) return done;
  for (const Pins& other : Pins::of_other_versions(pin_dir))
    if (auto done = other.remove(); !done) return done;
  std::error_code error;
  fs::remove(pin_dir, error);  // may be shared with others: leaving it is fine
  return {};
}

}  // namespace nodemesh::kernel

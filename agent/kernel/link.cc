#include "kernel/link.h"

#include <bpf/bpf.h>
#include <fmt/format.h>
#include <linux/bpf.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

namespace nodemesh::kernel {
namespace {

// cgroup.cgroup_id and netns.netns_ino share a union whose first members they are.
bool query(int fd, bpf_link_info& info) {
  uint32_t length = sizeof(info);
  std::memset(&info, 0, sizeof(info));
  return ::bpf_obj_get_info_by_fd(fd, &info, &length) == 0;
}

uint64_t target_of(const bpf_link_info& info) {
  return info.type == BPF_LINK_TYPE_NETNS ? info.netns.netns_ino : info.cgroup.cgroup_id;
}

std::unexpected<Error> attach_error(const std::string& pin) {
  const int error = errno;
  if (error == EPERM)
    return fail(fmt::format(
        "attach {}: not permitted; give the warden CAP_BPF and CAP_NET_ADMIN, or remove the program "
        "that is attached without BPF_F_ALLOW_MULTI at this cgroup or above it (bpftool cgroup tree)",
        pin));
  if (error == E2BIG)
    return fail(fmt::format(
        "attach {}: the hook already has 64 programs; see `bpftool cgroup tree` or `bpftool net`", pin));
  errno = error;
  return fail_errno(fmt::format("attach {}", pin));
}

}  // namespace

uint32_t program_id(int program_fd) {
  bpf_prog_info info{};
  uint32_t length = sizeof(info);
  return ::bpf_obj_get_info_by_fd(program_fd, &info, &length) == 0 ? info.id : 0;
}

std::string program_name(uint32_t id) {
  Fd fd(::bpf_prog_get_fd_by_id(id));
  bpf_prog_info info{};
  uint32_t length = sizeof(info);
  if (!fd || ::bpf_obj_get_info_by_fd(fd.get(), &info, &length) != 0) return "?";
  return info.name[0] ? info.name : "?";
}

Result<Link> Link::open(std::string pin) {
  Fd fd(::bpf_obj_get(pin.c_str()));
  if (!fd) return fail_errno(fmt::format("link {}: open the pin", pin));
  bpf_link_info info;
  if (!query(fd.get(), info)) return fail_errno(fmt::format("link {}: query", pin));
  return Link(std::move(fd), std::move(pin), info.prog_id);
}

Result<Link> Link::attach(int program_fd, int target_fd, uint32_t attach_type, uint64_t target_id,
                          std::string pin) {
  if (auto pinned = open(pin)) {
    if (pinned->state().target_id == target_id) {
      auto swapped = pinned->swap(program_fd);
      if (!swapped) return std::unexpected(swapped.error());
      return pinned;
    }
    if (auto gone = pinned->detach(); !gone) return std::unexpected(gone.error());
  }
  Fd fd(::bpf_link_create(program_fd, target_fd, static_cast<bpf_attach_type>(attach_type), nullptr));
  if (!fd) return attach_error(pin);
  if (::bpf_obj_pin(fd.get(), pin.c_str()) != 0) return fail_errno(fmt::format("link {}: pin", pin));
  return Link(std::move(fd), std::move(pin), kernel::program_id(program_fd));
}

Result<> Link::swap(int program_fd) {
  if (::bpf_link_update(fd_.get(), program_fd, nullptr) != 0) {
    if (errno == ENOLINK) return fail(Reason::POD_GONE, fmt::format("link {}: its target is gone", pin_));
    return fail_errno(fmt::format("link {}: swap the program", pin_));
  }
  program_id_ = kernel::program_id(program_fd);
  return {};
}

Result<> Link::detach() {
  // A link whose target died is detached already (ENOLINK).
  if (fd_ && ::bpf_link_detach(fd_.get()) != 0 && errno != ENOLINK && errno != ENODEV && errno != EINVAL)
    return fail_errno(fmt::format("link {}: detach", pin_));
  if (::unlink(pin_.c_str()) != 0 && errno != ENOENT) return fail_errno(fmt::format("link {}: unpin", pin_));
  fd_.reset();
  return {};
}

Link::State Link::state() const {
  bpf_link_info info;
  if (!fd_ || !query(fd_.get(), info)) return {};
  return {info.prog_id, target_of(info), ::access(pin_.c_str(), F_OK) == 0};
}

}  // namespace nodemesh::kernel

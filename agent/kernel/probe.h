// What this kernel and container must offer before capture can start, found by trying: small programs of
// every kind and helper that bpf/ uses are loaded for real, since version numbers lie (backports,
// configurations). What is missing is said in one sentence each. Reads and loads only; nothing stays. Any
// thread, at start.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "kernel/capture.h"

struct bpf_insn;

namespace nodemesh::kernel {

// The door to the kernel, so that tests can be a kernel that lacks something. Descriptors are owned by the
// caller; failures are negative errno.
class BpfDoor {
 public:
  virtual ~BpfDoor() = default;
  virtual int make_map(uint32_t type, uint32_t key_size, uint32_t value_size, uint32_t entries);
  // A socket storage map, which also needs type information (BTF) to be accepted by the kernel.
  virtual int make_socket_storage();
  virtual int load(uint32_t program_type, uint32_t attach_type, std::span<const bpf_insn> program);
  // Attaches to a cgroup directory; the link ends with its descriptor.
  virtual int attach(int program_fd, const std::string& cgroup, uint32_t attach_type);
  virtual bool in_bpffs(const std::string& path);
  virtual Result<> check_cgroups(const std::string& kubepods, const std::string& kubelet);
  // SO_NETNS_COOKIE of a fresh socket: 0 or negative errno.
  virtual int read_netns_cookie();
};

// One sentence per missing thing, each telling what to do; empty: capture can start. The order is that in
// which they should be mended, and where one makes all others fail (no right to use BPF), it alone is said.
std::vector<std::string> check(const CaptureOptions& options, BpfDoor& door);
std::vector<std::string> check(const CaptureOptions& options);

}  // namespace nodemesh::kernel

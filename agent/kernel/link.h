// One attachment of a program to a hook, as a BPF link pinned under a path: it outlives the process, and the
// program behind it is swapped without a gap. Owned by Capture; the warden's thread.
#pragma once

#include <cstdint>
#include <string>

#include "base/fd.h"
#include "base/reason.h"

namespace nodemesh::kernel {

class Link {
 public:
  // Attaches `program_fd` (borrowed, as `target_fd`: a cgroup directory or a network namespace) and pins the
  // link. If the pin holds a link to this very target, that one gets the program instead; one to another
  // target is replaced.
  static Result<Link> attach(int program_fd, int target_fd, uint32_t attach_type, uint64_t target_id,
                             std::string pin);
  // Opens a pinned link as it is.
  static Result<Link> open(std::string pin);

  // Replaces the program atomically. POD_GONE: the target has died, perhaps a moment ago while state() still
  // names it.
  Result<> swap(int program_fd);
  // Detaches for every holder and removes the pin.
  Result<> detach();

  // What the kernel says now. `target_id` is the cgroup id or the namespace's inode; 0: the target is gone.
  struct State {
    uint32_t program_id = 0;
    uint64_t target_id = 0;
    bool pinned = false;
  };
  State state() const;
  // Id of the program that this process put behind the link.
  uint32_t program_id() const { return program_id_; }

 private:
  Link(Fd fd, std::string pin, uint32_t program_id)
      : fd_(std::move(fd)), pin_(std::move(pin)), program_id_(program_id) {}

  Fd fd_;
  std::string pin_;
  uint32_t program_id_ = 0;
};

// The kernel's id of a loaded program, 0 on failure.
uint32_t program_id(int program_fd);
// Its name, at most 15 characters; "?" if it is gone.
std::string program_name(uint32_t id);

}  // namespace nodemesh::kernel

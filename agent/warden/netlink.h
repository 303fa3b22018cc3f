// The few rtnetlink requests the warden makes: one request, its acknowledgement or dump. A socket belongs to
// the namespace it was opened in. One thread.
#pragma once

#include <linux/rtnetlink.h>

#include <cstdint>
#include <functional>
#include <vector>

#include "base/fd.h"
#include "base/reason.h"

namespace nodemesh::warden {

class NetlinkRequest {
 public:
  // `family_header` is the struct after nlmsghdr (rtmsg, fib_rule_hdr, ifaddrmsg …).
  template <class FamilyHeader>
  NetlinkRequest(uint16_t type, uint16_t flags, const FamilyHeader& family_header) {
    start(type, flags, &family_header, sizeof family_header);
  }
  void add_u32(uint16_t attribute, uint32_t value);
  nlmsghdr* header() { return reinterpret_cast<nlmsghdr*>(bytes_.data()); }

 private:
  void start(uint16_t type, uint16_t flags, const void* family_header, size_t size);
  std::vector<char> bytes_;
};

class Netlink {
 public:
  // In the calling thread's current namespace.
  static Result<Netlink> open();
  // 0 or the kernel's errno.
  Result<int> acknowledge(NetlinkRequest request);
  Result<> dump(NetlinkRequest request, const std::function<void(const nlmsghdr&)>& each);

 private:
  explicit Netlink(Fd fd) : fd_(std::move(fd)) {}
  Result<> transfer(NetlinkRequest& request, const std::function<bool(const nlmsghdr&)>& each);
  Fd fd_;
};

}  // namespace nodemesh::warden

#include "warden/netlink.h"

#include <sys/socket.h>

#include <cerrno>
#include <cstring>

namespace nodemesh::warden {

void NetlinkRequest::start(uint16_t type, uint16_t flags, const void* family_header, size_t size) {
  bytes_.resize(NLMSG_SPACE(size));
  nlmsghdr* head = header();
  head->nlmsg_type = type;
  head->nlmsg_flags = static_cast<uint16_t>(NLM_F_REQUEST | flags);
  head->nlmsg_seq = 1;
  std::memcpy(NLMSG_DATA(head), family_header, size);
  head->nlmsg_len = static_cast<uint32_t>(NLMSG_LENGTH(size));
}

void NetlinkRequest::add_u32(uint16_t attribute, uint32_t value) {
  size_t offset = NLMSG_ALIGN(header()->nlmsg_len);
  bytes_.resize(offset + RTA_SPACE(sizeof value));
  rtattr head{static_cast<uint16_t>(RTA_LENGTH(sizeof value)), attribute};
  std::memcpy(bytes_.data() + offset, &head, sizeof head);
  std::memcpy(bytes_.data() + offset + RTA_LENGTH(0), &value, sizeof value);
  header()->nlmsg_len = static_cast<uint32_t>(bytes_.size());
}

Result<Netlink> Netlink::open() {
  Fd fd(::socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE));
  if (!fd) return fail_errno("socket(AF_NETLINK)");
  timeval limit{.tv_sec = 5};
  ::setsockopt(fd.get(), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
  return Netlink(std::move(fd));
}

// Sends and hands every answer to `each` until that returns false.
Result<> Netlink::transfer(NetlinkRequest& request, const std::function<bool(const nlmsghdr&)>& each) {
  sockaddr_nl kernel{.nl_family = AF_NETLINK};
  if (::sendto(fd_.get(), request.header(), request.header()->nlmsg_len, 0,
               reinterpret_cast<sockaddr*>(&kernel), sizeof kernel) < 0) {
    return fail_errno("netlink request");
  }
  alignas(nlmsghdr) char buffer[32768];
  for (;;) {
    ssize_t length = ::recv(fd_.get(), buffer, sizeof buffer, 0);
    if (length < 0 && errno == EINTR) continue;
    if (length <= 0) return fail_errno("netlink answer");
    auto left = static_cast<uint32_t>(length);
    for (auto* head = reinterpret_cast<nlmsghdr*>(buffer); NLMSG_OK(head, left);
         head = NLMSG_NEXT(head, left)) {
      if (!each(*head)) return {};
    }
  }
}

Result<int> Netlink::acknowledge(NetlinkRequest request) {
  request.header()->nlmsg_flags |= NLM_F_ACK;
  int error = 0;
  auto done = transfer(request, [&](const nlmsghdr& head) {
    if (head.nlmsg_type != NLMSG_ERROR) return true;
    error = -static_cast<const nlmsgerr*>(NLMSG_DATA(&head))->error;
    return false;
  });
  if (!done) return std::unexpected(std::move(done.error()));
  return error;
}

Result<> Netlink::dump(NetlinkRequest request, const std::function<void(const nlmsghdr&)>& each) {
  request.header()->nlmsg_flags |= NLM_F_DUMP;
  int error = 0;
  auto done = transfer(request, [&](const nlmsghdr& head) {
    if (head.nlmsg_type == NLMSG_DONE) return false;
    if (head.nlmsg_type == NLMSG_ERROR) {
      error = -static_cast<const nlmsgerr*>(NLMSG_DATA(&head))->error;
      return false;
    }
    each(head);
    return true;
  });
  if (!done) return done;
  if (error == 0) return {};
  errno = error;
  return fail_errno("netlink dump");
}

}  // namespace nodemesh::warden

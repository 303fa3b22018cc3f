#include <fcntl.h>
#include <sys/socket.h>

#include <cerrno>

#include "warden/channel.h"

namespace nodemesh::warden {
namespace {

// Sends one datagram; false when the socket would block.
Result<bool> send_now(int socket, std::span<const std::byte> bytes, std::span<const int> descriptors) {
  iovec iov{const_cast<std::byte*>(bytes.data()), bytes.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * kMaxDescriptors)];
  msghdr message{.msg_iov = &iov, .msg_iovlen = 1};
  if (!descriptors.empty()) {
    message.msg_control = control;
    message.msg_controllen = CMSG_SPACE(descriptors.size_bytes());
    std::memset(control, 0, message.msg_controllen);
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(descriptors.size_bytes());
    std::memcpy(CMSG_DATA(header), descriptors.data(), descriptors.size_bytes());
  }
  while (::sendmsg(socket, &message, MSG_NOSIGNAL | MSG_DONTWAIT) < 0) {
    if (errno == EINTR) continue;
    // ETOOMANYREFS: the peer holds as many descriptors in flight as it may; it must read first.
    if (errno == EAGAIN || errno == ETOOMANYREFS) return false;
    return fail_errno("sending on the channel between warden and proxy");
  }
  return true;
}

Result<std::vector<Fd>> duplicate(std::span<const int> descriptors) {
  std::vector<Fd> copies;
  copies.reserve(descriptors.size());
  for (int fd : descriptors) {
    int copy = ::fcntl(fd, F_DUPFD_CLOEXEC, 0);
    if (copy < 0) return fail_errno("duplicating a descriptor for the channel");
    copies.emplace_back(copy);
  }
  return copies;
}

// Owns whatever descriptors came, before anything else can fail.
std::vector<Fd> take_descriptors(msghdr& message) {
  std::vector<Fd> out;
  for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr; header = CMSG_NXTHDR(&message, header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
    size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; ++i) {
      int fd;
      std::memcpy(&fd, CMSG_DATA(header) + i * sizeof(int), sizeof fd);
      out.emplace_back(fd);
    }
  }
  return out;
}

}  // namespace

Result<> PacketSocket::send_bytes(std::vector<std::byte> bytes, std::span<const int> descriptors) {
  if (out_.empty()) {
    auto sent = send_now(fd_.get(), bytes, descriptors);
    if (!sent) return std::unexpected(std::move(sent.error()));
    if (*sent) return {};
  }
  if (out_.size() >= kMaxQueued) return fail("the other end of the channel does not read");
  auto copies = duplicate(descriptors);
  if (!copies) return std::unexpected(std::move(copies.error()));
  out_.push_back({std::move(bytes), std::move(*copies)});
  return {};
}

size_t PacketSocket::queued_descriptors() const {
  size_t count = 0;
  for (const Packet& packet : out_) count += packet.descriptors.size();
  return count;
}

Result<> PacketSocket::flush() {
  std::vector<int> numbers;
  while (!out_.empty()) {
    numbers.clear();
    for (const Fd& fd : out_.front().descriptors) numbers.push_back(fd.get());
    auto sent = send_now(fd_.get(), out_.front().bytes, numbers);
    if (!sent) return std::unexpected(std::move(sent.error()));
    if (!*sent) return {};
    out_.pop_front();
  }
  return {};
}

Result<PacketSocket::Packet> PacketSocket::receive() {
  std::array<std::byte, kMaxMessage> buffer;
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * kMaxDescriptors)];
  iovec iov{buffer.data(), buffer.size()};
  msghdr message{.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
  ssize_t length;
  do {
    length = ::recvmsg(fd_.get(), &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  } while (length < 0 && errno == EINTR);
  if (length < 0) {
    if (errno == EAGAIN) return Packet{};
    return fail_errno("reading from the channel between warden and proxy");
  }
  Packet packet;
  packet.descriptors = take_descriptors(message);
  if (message.msg_flags & MSG_TRUNC) return fail("channel message is longer than any that is known");
  // Also set when this process has no descriptor left to receive into.
  if (message.msg_flags & MSG_CTRUNC)
    return fail("descriptors of a channel message were lost: out of file descriptors");
  if (length == 0) return fail("the other end closed the channel");
  packet.bytes.assign(buffer.begin(), buffer.begin() + length);
  return packet;
}

}  // namespace nodemesh::warden

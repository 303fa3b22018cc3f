#include "io/tcp_end.h"

#include <sys/socket.h>

#include <cerrno>

#include "io/socket.h"

namespace nodemesh::io {

Result<> TcpEnd::adopt(Fd fd) {
  fd_ = std::move(fd);
  return reactor_.add(fd_.get(), *this);
}

int TcpEnd::connect(Fd fd, const SockAddr& to, int family) {
  if (family == AF_INET && !to.ip.is_v4()) return EAFNOSUPPORT;
  sockaddr_storage native;
  socklen_t size = to.to_native(native, family);
  int result = ::connect(fd.get(), reinterpret_cast<sockaddr*>(&native), size);
  if (result != 0 && errno != EINPROGRESS) return errno;
  connecting_ = result != 0;
  shared_ = true;
  if (auto adopted = adopt(std::move(fd)); !adopted) return ENOMEM;
  if (connecting_) return EINPROGRESS;
  // What was written before goes with the first EPOLLOUT; an end alone would wait for nothing.
  if (end_wanted_) end_write();
  return 0;
}

TcpEnd::Read TcpEnd::read(std::span<uint8_t> out) {
  if (broken_) return {0, Status::broken};
  if (read_ended_) return {0, Status::end};
  ssize_t count = ::recv(fd_.get(), out.data(), out.size(), 0);
  if (count > 0) {
    active_at_ = reactor_.now();
    // A short read empties the socket, unless the peer's FIN is behind it: no new event would come for that.
    bool drained = static_cast<size_t>(count) < out.size() && !peer_ended_;
    readable_ = !drained;
    return {static_cast<size_t>(count), drained ? Status::empty : Status::more};
  }
  readable_ = false;
  if (count == 0) {
    read_ended_ = true;
    return {0, Status::end};
  }
  if (errno == EAGAIN || errno == EINTR) return {0, Status::empty};
  broken_ = true;
  return {0, Status::broken};
}

size_t TcpEnd::write(std::span<const iovec> pieces, size_t total) {
  if (broken_ || end_wanted_ || closed_) return total;
  if (kept_ != nullptr || connecting_ || !fd_) {
    keep(pieces, 0);
    return 0;
  }
  msghdr message{};
  message.msg_iov = const_cast<iovec*>(pieces.data());
  message.msg_iovlen = pieces.size();
  ssize_t count = ::sendmsg(fd_.get(), &message, MSG_NOSIGNAL);
  if (count < 0) {
    if (errno != EAGAIN && errno != EINTR) {
      broken_ = true;
      return 0;
    }
    count = 0;
  }
  if (count > 0) active_at_ = reactor_.now();
  if (static_cast<size_t>(count) < total) keep(pieces, static_cast<size_t>(count));
  return static_cast<size_t>(count);
}

void TcpEnd::keep(std::span<const iovec> pieces, size_t skip) {
  if (kept_ == nullptr) {
    kept_ = std::make_unique<std::vector<uint8_t>>();
    kept_sent_ = 0;
  }
  // A peer that is always a little behind would otherwise make us hold everything that ever passed.
  if (kept_sent_ > kept_->size() / 2) {
    kept_->erase(kept_->begin(), kept_->begin() + static_cast<ptrdiff_t>(kept_sent_));
    kept_sent_ = 0;
  }
  for (const auto& piece : pieces) {
    if (skip >= piece.iov_len) {
      skip -= piece.iov_len;
      continue;
    }
    auto* data = static_cast<const uint8_t*>(piece.iov_base);
    kept_->insert(kept_->end(), data + skip, data + piece.iov_len);
    skip = 0;
  }
  held_.set(kept_->capacity());
}

void TcpEnd::send_kept() {
  size_t sent = 0;
  while (kept_ != nullptr) {
    ssize_t count = ::send(fd_.get(), kept_->data() + kept_sent_, kept_->size() - kept_sent_, MSG_NOSIGNAL);
    if (count < 0) {
      if (errno == EINTR) continue;
      broken_ = errno != EAGAIN;
      break;
    }
    sent += static_cast<size_t>(count);
    kept_sent_ += static_cast<size_t>(count);
    if (kept_sent_ == kept_->size()) kept_.reset();
  }
  if (kept_ == nullptr) held_.set(0);
  if (sent > 0) active_at_ = reactor_.now();
  if (broken_) return owner_.on_broken(*this);
  if (kept_ == nullptr && end_wanted_) end_write();
  if (sent > 0) owner_.on_drained(*this, sent);
}

void TcpEnd::end_write() {
  end_wanted_ = true;
  if (kept_ != nullptr || connecting_ || write_ended_ || broken_ || !fd_) return;
  write_ended_ = true;
  ::shutdown(fd_.get(), SHUT_WR);
}

void TcpEnd::close() {
  forget();
  fd_.reset();
}

void TcpEnd::reset() {
  forget();
  if (fd_) close_with_reset(fd_);
}

void TcpEnd::forget() {
  closed_ = true;
  readable_ = connecting_ = false;
  kept_.reset();
  held_.set(0);
  alive_.reset();
  // epoll forgets a socket by itself only when its last descriptor is closed, in whatever process that is.
  if (fd_) reactor_.remove(fd_.get(), *this, /*closing=*/!shared_);
}

void TcpEnd::later(std::move_only_function<void()> work) {
  if (alive_ == nullptr) alive_ = std::make_shared<int>(0);
  reactor_.post([work = std::move(work), alive = std::weak_ptr<int>(alive_)]() mutable {
    if (!alive.expired()) work();
  });
}

void TcpEnd::on_events(uint32_t events) {
  if (connecting_) {
    if (!(events & (EPOLLOUT | EPOLLERR | EPOLLHUP))) return;
    connecting_ = false;
    int error = take_error(fd_.get());
    broken_ = error != 0;
    // A server that spoke first may have ended already: no other event comes for its FIN.
    peer_ended_ = (events & (EPOLLRDHUP | EPOLLHUP)) != 0;
    readable_ = (events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP)) != 0;
    if (error == 0 && kept_ == nullptr && end_wanted_) end_write();
    // What was written meanwhile goes after the owner's call, in which the owner may destroy us.
    if (error == 0 && kept_ != nullptr) later([this] { send_kept(); });
    return owner_.on_connected(*this, error);
  }
  if (broken_) return;
  if (events & EPOLLERR) {
    broken_ = true;
    return owner_.on_broken(*this);
  }
  bool told = false;
  if (events & (EPOLLRDHUP | EPOLLHUP)) peer_ended_ = true;
  if ((events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP)) && !read_ended_) {
    readable_ = told = true;
  }
  if ((events & EPOLLOUT) && kept_ != nullptr) {
    // Both at once: the drain may end the owner, so the bytes are told of afterwards, if it lives.
    if (told) {
      later([this] {
        if (readable_) owner_.on_readable(*this);
      });
    }
    return send_kept();
  }
  if (told) owner_.on_readable(*this);
}

}  // namespace nodemesh::io

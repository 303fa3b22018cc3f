// One TCP socket of a relay: edge-triggered reads on demand, writes that keep what the kernel does not take,
// half close in order. It holds no buffer unless its peer is slower than ours. Owned by a session; worker
// thread only.
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/addr.h"
#include "base/fd.h"
#include "io/held.h"
#include "io/reactor.h"

namespace nodemesh::io {

class TcpEnd;

class TcpEndOwner {
 public:
  // The socket may have bytes, or its end: read() until it says `empty`.
  virtual void on_readable(TcpEnd& end) = 0;
  // Everything kept by write() has gone.
  virtual void on_drained(TcpEnd& end, size_t bytes) = 0;
  // A connect() ended; 0 or an errno.
  virtual void on_connected(TcpEnd& end, int error) = 0;
  // The peer reset the connection, or the network broke it. Not called after a read() or write() told
  // already.
  virtual void on_broken(TcpEnd& end) = 0;

 protected:
  ~TcpEndOwner() = default;
};

class TcpEnd final : private EventHandler {
 public:
  enum class Status : uint8_t { more, empty, end, broken };
  struct Read {
    size_t bytes = 0;
    Status status = Status::empty;
  };

  // What it keeps is counted in `account`, unless that is null.
  TcpEnd(Reactor& reactor, TcpEndOwner& owner, HeldAccount* account = nullptr)
      : reactor_(reactor), owner_(owner), held_(account), active_at_(reactor.now()) {}
  ~TcpEnd() { close(); }
  TcpEnd(const TcpEnd&) = delete;
  TcpEnd& operator=(const TcpEnd&) = delete;

  // Takes over a connected non-blocking socket.
  Result<> adopt(Fd fd);
  // Takes over a fresh non-blocking socket and connects it to `to`. Returns 0 when it is connected already
  // (usual on this node), EINPROGRESS when on_connected follows, else an errno.
  int connect(Fd fd, const SockAddr& to, int family);

  bool is_open() const { return static_cast<bool>(fd_); }
  bool readable() const { return readable_; }
  // `bytes` may be non-zero with any status.
  Read read(std::span<uint8_t> out);
  // Sends the pieces; what the kernel does not take, and all before there is a connected socket, is kept and
  // goes first. Returns how much has left us, or nothing is kept and the connection is broken(). `total` is
  // the sum of the pieces.
  size_t write(std::span<const iovec> pieces, size_t total);
  size_t kept() const { return kept_ ? kept_->size() - kept_sent_ : 0; }
  size_t held() const { return held_.bytes(); }  // bytes of memory for that
  // The turn in which bytes last moved through the socket, either way; at first, when this was made.
  Monotonic::time_point active_at() const { return active_at_; }
  bool broken() const { return broken_; }
  bool read_ended() const { return read_ended_; }
  bool write_ended() const { return write_ended_; }
  // FIN once everything kept has gone.
  void end_write();
  void close();
  void reset();  // closes with RST
  int fd() const { return fd_.get(); }

 private:
  void on_events(uint32_t events) override;
  void send_kept();
  void forget();  // ends all calls to the owner
  // Runs `work` in this turn unless this end is gone by then.
  void later(std::move_only_function<void()> work);
  void keep(std::span<const iovec> pieces, size_t skip);

  Reactor& reactor_;
  TcpEndOwner& owner_;
  std::unique_ptr<std::vector<uint8_t>> kept_;
  size_t kept_sent_ = 0;
  Held held_;
  Monotonic::time_point active_at_;
  Fd fd_;
  std::shared_ptr<int> alive_;  // made when work is posted for later, which must notice that we are gone
  bool connecting_ = false, readable_ = false, peer_ended_ = false, read_ended_ = false, write_ended_ = false;
  bool end_wanted_ = false, broken_ = false, closed_ = false;
  bool shared_ = false;  // the socket was made by another process, which may still hold a copy
};

}  // namespace nodemesh::io

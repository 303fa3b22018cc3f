// The two ends of the socket between warden and proxy. `WardenLink` is the proxy's end: it connects to
// <run-dir>/warden.sock, keeps trying every 100 ms when the warden is away, and gives a new warden back what
// the old one knew (listeners, keys), so that a warden restart is invisible to the proxy but for a pause in
// fresh sockets. `ProxyChannel` is one accepted proxy at the warden's end. Each object belongs to its
// reactor's thread and never blocks. Neither trusts the other: the peer's uid is checked, and a message that
// does not pass ends the connection.
#pragma once

#include <sys/types.h>

#include <array>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/addr.h"
#include "base/fd.h"
#include "io/reactor.h"
#include "warden/message.h"

namespace nodemesh::warden {

// A pod of this node as the proxy sees it.
struct Pod {
  uint64_t cookie = 0;  // of its network namespace
  std::string uid, ns, name;
  std::vector<Addr> addresses;
  bool enrolled = false;
  bool source_kept = false;  // `in` sockets may bind the client's address
  bool ipv6 = false;         // sockets are AF_INET6 (dual-stack), otherwise AF_INET
  auto operator<=>(const Pod&) const = default;
};

// One listener per kind and worker; non-blocking, listening, close-on-exec.
using PodListeners = std::array<std::vector<Fd>, NM_LISTENER_COUNT>;

PodRecord to_record(
    const Pod& pod);  // REQUIRES: names within PodRecord's fields, at most NM_POD_ADDRESSES addresses
Pod from_record(const PodRecord& record);

// Bytes and descriptors over one SEQPACKET socket: a bounded queue out, whole datagrams in. Shared by both
// ends.
class PacketSocket {
 public:
  struct Packet {
    std::vector<std::byte> bytes;
    std::vector<Fd> descriptors;
  };
  PacketSocket() = default;
  explicit PacketSocket(Fd fd) : fd_(std::move(fd)) {}
  int fd() const { return fd_.get(); }
  explicit operator bool() const { return static_cast<bool>(fd_); }
  size_t queued() const { return out_.size(); }
  size_t queued_descriptors() const;
  // Sends now or queues; call flush() when writable. Borrowed descriptors are sent before this returns or
  // duplicated. Errors: the peer is gone, or it has not read for kMaxQueued messages.
  template <class Message>
  Result<> send(const Message& message, std::span<const int> descriptors = {}) {
    return send_bytes(encode(message, ++sequence_), descriptors);
  }
  uint32_t last_sequence() const { return sequence_; }  // of the message sent last
  Result<> flush();
  // The next datagram; an empty `bytes` means nothing more now. Errors: end of file, cut data or descriptors.
  Result<Packet> receive();
  uint32_t next_expected() { return ++expected_; }

 private:
  static constexpr size_t kMaxQueued = 4096;
  Result<> send_bytes(std::vector<std::byte> bytes, std::span<const int> descriptors);

  Fd fd_;
  std::deque<Packet> out_;
  uint32_t sequence_ = 0, expected_ = 0;
};

// What the proxy learns from the warden. Calls come from the reactor's thread, never from inside a WardenLink
// method.
class WardenLinkEvents {
 public:
  virtual void on_warden_connected(const Welcome& welcome) = 0;
  // A new pod with its listeners: accept on them, then call takeover_ready(pod.cookie). The link remembers
  // the descriptors' numbers to return them to the next warden, so keep them open until on_pod_gone or an
  // update to `enrolled == false` for this cookie, or until drain(). Again for a known cookie (enrolled anew,
  // or other listeners): the old listeners may be closed once their backlog is drained.
  virtual void on_pod_add(Pod pod, PodListeners listeners) = 0;
  // The pod changed. With `enrolled` false: accept what is queued, close listeners and spare sockets, let
  // sessions end, then pod_gone_ack(cookie); until then the namespace keeps what sessions with the client's
  // address need.
  virtual void on_pod_update(Pod pod) = 0;
  // Close every descriptor of that namespace, sessions too, within a second; then pod_gone_ack(cookie).
  virtual void on_pod_gone(uint64_t cookie) = 0;
  // Answers the want_sockets that returned `answer.request`, in any order; fewer than asked, or none with a
  // reason, when they could not be made.
  virtual void on_sockets(const Sockets& answer, std::vector<Fd> sockets) = 0;
  // The sealed memfd of an earlier proxy process; comes before the first pod. `keys` is empty when there is
  // none.
  virtual void on_keys(Fd keys) = 0;
  virtual void on_kernel_stats(const KernelStats& stats) = 0;
  // Every pod known now has been announced.
  virtual void on_snapshot_sent() = 0;
  // Another agent accepts for all pods of this node; sockets for what is under way can still be had.
  virtual void on_superseded() = 0;
  // The warden is away (or refused us); listeners stay usable. Reconnecting goes on by itself.
  virtual void on_warden_closed(const Error& why) = 0;

 protected:
  ~WardenLinkEvents() = default;
};

class WardenLink final : private io::EventHandler {
 public:
  // `path` of the warden's socket; `warden_uid` must own the other end. Connects from the first turn on.
  WardenLink(io::Reactor& reactor, WardenLinkEvents& events, std::string path, uint32_t workers,
             uid_t warden_uid = 0);
  ~WardenLink();

  bool connected() const { return welcomed_; }
  // Asks for 1..kMaxSocketBatch fresh sockets. The number that the answer will carry, unique on this
  // connection to the warden; empty when the warden is away (nothing will come).
  std::optional<uint32_t> want_sockets(uint64_t cookie, SocketKind kind, uint32_t count);
  void takeover_ready(uint64_t cookie);
  void pod_gone_ack(uint64_t cookie);
  // The proxy closes its listeners: none is returned to a next warden, and those that come are closed.
  void drain();
  // Lends the warden a sealed memfd (F_SEAL_WRITE|SHRINK|GROW); the link keeps a duplicate for a next warden.
  void store_keys(int memfd);
  bool want_kernel_stats();

 private:
  struct Known {
    std::array<std::vector<int>, NM_LISTENER_COUNT> listeners;
    bool ready = false;
  };
  void on_events(uint32_t events) override;
  void connect();
  Result<> open_socket();
  Result<> greet();
  void close(const Error& why);
  template <class Message>
  bool send(const Message& message, std::span<const int> descriptors = {});
  void handle(WardenMessage message, std::vector<Fd> descriptors);
  void handle_pod_add(const PodAdd& add, std::vector<Fd> descriptors);

  io::Reactor& reactor_;
  WardenLinkEvents& events_;
  const std::string path_;
  const uint32_t workers_;
  const uid_t warden_uid_;
  PacketSocket socket_;
  bool welcomed_ = false, draining_ = false;
  std::map<uint64_t, Known> known_;
  Fd keys_;
  Error failure_;
  io::Timer retry_;
  io::Deferred failing_;
};

class ProxyChannel;

// What the warden does for a connected proxy. `channel` may be destroyed only from on_proxy_closed or between
// turns.
class ProxyChannelEvents {
 public:
  virtual void on_proxy_message(ProxyChannel& channel, ProxyMessage message, std::vector<Fd> descriptors) = 0;
  virtual void on_proxy_closed(ProxyChannel& channel, const Error& why) = 0;

 protected:
  ~ProxyChannelEvents() = default;
};

class ProxyChannel final : private io::EventHandler {
 public:
  // `socket` is accepted, its peer checked.
  ProxyChannel(io::Reactor& reactor, ProxyChannelEvents& events, Fd socket, pid_t peer);
  ~ProxyChannel();

  pid_t peer() const { return peer_; }
  // What the proxy has not read; new wishes are refused while it lags.
  size_t queued() const { return socket_.queued(); }
  size_t queued_descriptors() const { return socket_.queued_descriptors(); }
  // Sequence of the message being handled, for answers.
  uint32_t request() const { return request_; }
  // Failures are reported by on_proxy_closed in the same or the next turn.
  template <class Message>
  void send(const Message& message, std::span<const int> descriptors = {}) {
    if (auto sent = socket_.send(message, descriptors); !sent) fail_later(std::move(sent.error()));
  }
  // Ends the channel: on_proxy_closed follows at the end of the turn, nothing else before it.
  void fail_later(Error why);

 private:
  void on_events(uint32_t events) override;
  void read_some();
  void finish();

  io::Reactor& reactor_;
  ProxyChannelEvents& events_;
  PacketSocket socket_;
  const pid_t peer_;
  uint32_t request_ = 0;
  Error failure_;
  bool failed_ = false;
  io::Deferred failing_;
  io::Deferred reading_;
};

// The listening socket of <run-dir>/warden.sock, for us and the group `proxy_gid` (mode 0660; not owned by
// the proxy, which could then remove it from a sticky directory). A stale file is replaced; one that a live
// process serves is an error. Hands out accepted descriptors whose peer is `proxy_uid` or our own uid.
class ChannelListener final : private io::EventHandler {
 public:
  using Accepted = std::move_only_function<void(Fd socket, pid_t peer)>;
  static Result<std::unique_ptr<ChannelListener>> create(io::Reactor& reactor, std::string path,
                                                         uid_t proxy_uid, gid_t proxy_gid, Accepted accepted);
  ~ChannelListener();

 private:
  ChannelListener(io::Reactor& reactor, std::string path, uid_t proxy_uid, Fd fd, Accepted accepted);
  void on_events(uint32_t events) override;

  io::Reactor& reactor_;
  const std::string path_;
  const uid_t proxy_uid_;
  Fd fd_;
  Accepted accepted_;
};

}  // namespace nodemesh::warden

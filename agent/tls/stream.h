// A TLS connection over a non-blocking socket that reads and writes through the worker's shared buffers: one
// recv may bring many records, and all records sealed in a turn leave in one send. It holds bytes of its own
// only while the peer does not take them. Owned by one connection; worker thread only.
//
// REQUIRES: plaintext returned by read() is used before the next call. What handshake(), read() and seal()
// queue is flushed before any other connection of the worker runs, since it lies in a shared buffer.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "base/fd.h"
#include "base/reason.h"
#include "io/buffers.h"
#include "io/held.h"
#include "tls/openssl.h"

namespace nodemesh::tls {

class Stream {
 public:
  enum class State { ok, want, closed, failed };

  // Takes both over; `ssl` is configured (context, credential, connect or accept state) and not yet
  // connected.
  Stream(SslPtr ssl, Fd fd, io::Buffers& buffers);
  ~Stream();
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  int fd() const { return fd_.get(); }
  SSL* ssl() const { return ssl_.get(); }

  // Drives the handshake with what the socket holds: ok when it is complete, want when bytes are missing,
  // closed when the peer left, failed on a TLS error (then last_error() tells). Its output is queued until
  // flush().
  State handshake();

  struct Read {
    std::span<const uint8_t> bytes;  // in the worker's plain buffer
    State state = State::want;       // of the connection after these bytes
    bool drained = true;  // false: the socket may hold more; call again, in this turn or a later one
  };
  // One recv, decrypted in full.
  Read read();

  // Seals `bytes` into records and queues them; false when the connection is broken.
  bool seal(std::span<const uint8_t> bytes);
  // Sends what is queued in one call; false when the connection is broken. What the socket does not take is
  // kept.
  bool flush();
  // True while the socket has not taken everything: seal no more until on_writable() has drained it.
  bool blocked() const { return overflow_ != nullptr; }
  // Bytes of memory for that, counted in `account` from charge_to() on.
  size_t held() const { return held_.bytes(); }
  void charge_to(io::HeldAccount& account) { held_.charge_to(&account); }
  // Nothing more is sent: forgets what the socket did not take, and the account.
  void drop_unsent();
  // Queues close_notify (RFC 8446 6.1); flush() it.
  void close_notify();
  // Bytes received and sent on the wire, records included.
  uint64_t received() const { return received_; }
  uint64_t sent() const { return sent_; }
  std::string last_error() const;

 private:
  friend struct StreamBio;
  bool receive();
  void queue(std::span<const uint8_t> bytes);

  SslPtr ssl_;
  Fd fd_;
  io::Buffers& buffers_;
  const uint8_t* cipher_ = nullptr;  // not yet decrypted, in the shared buffer
  size_t cipher_size_ = 0;
  size_t sealed_ = 0;                               // bytes queued in the shared sealed buffer in this turn
  std::unique_ptr<std::vector<uint8_t>> overflow_;  // what the socket has not taken, in order
  size_t overflow_sent_ = 0;
  io::Held held_;
  uint64_t received_ = 0, sent_ = 0;
  bool socket_empty_ = true, peer_closed_ = false, broken_ = false, read_to_end_ = false;
  bool may_receive_ = true;  // false: this read() has had its recv

 public:
  // The owner's event handler reports EPOLLIN here; until then a drained socket is not read again.
  // `ended`: the event also told of a FIN or an error, which has no event of its own later: read to the very
  // end.
  void mark_readable(bool ended) {
    socket_empty_ = false;
    read_to_end_ = read_to_end_ || ended;
  }
};

}  // namespace nodemesh::tls

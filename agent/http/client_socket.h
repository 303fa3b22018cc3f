// A stream of bytes to a server that speaks HTTP/2: a Unix socket, TCP, or TLS over TCP with the server's
// name checked against roots from a file, which is read at each dial, so that it may change. Owned by the
// client of that protocol; reactor's thread. For calls by the minute, not for the data path: a name is looked
// up and a context is made for each connection.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/addr.h"
#include "base/fd.h"
#include "base/reason.h"
#include "io/buffers.h"
#include "io/reactor.h"
#include "io/resolver.h"
#include "tls/stream.h"

namespace nodemesh::http {

struct ClientTls {
  std::string roots_file;   // PEM
  std::string server_name;  // DNS name or address that the server's certificate must be for (RFC 6125 6.4)
};

struct ClientTarget {
  std::string unix_path;  // this, or
  std::string host;       // a DNS name or an address without brackets, and
  uint16_t port = 0;
  std::optional<ClientTls> tls;  // only with `host`

  std::string name() const;  // for messages
};

class ClientSocketOwner {
 public:
  // Each may close the socket and destroy its owner.
  virtual void on_open() = 0;   // connected, the handshake is done; there may be bytes already
  virtual void on_ready() = 0;  // read() until it says drained; what was kept by write() may have gone
  virtual void on_lost(std::string why) = 0;  // it is closed

 protected:
  ~ClientSocketOwner() = default;
};

class ClientSocket final : private io::EventHandler {
 public:
  // `reactor` and `owner` outlive it.
  ClientSocket(io::Reactor& reactor, ClientTarget target, ClientSocketOwner& owner);
  ~ClientSocket();
  ClientSocket(const ClientSocket&) = delete;
  ClientSocket& operator=(const ClientSocket&) = delete;

  // REQUIRES: idle(). Ends in on_open or on_lost, never within this call.
  void dial();
  // Without a call to the owner. A look-up under way goes on and its answer is dropped.
  void close();
  bool idle() const { return state_ == State::idle; }
  bool is_open() const { return state_ == State::open; }

  struct Read {
    std::span<const uint8_t> bytes;  // until the next call
    bool drained = true;             // nothing more for now
    bool ended = false;              // nothing more ever, after `bytes`
    std::string error;               // why, where it ended badly
  };
  Read read();
  // Sends, and keeps what the kernel does not take. False: the connection is broken.
  bool write(std::string_view bytes);
  bool blocked() const { return !unsent_.empty() || (tls_ && tls_->blocked()); }
  const ClientTarget& target() const { return target_; }

 private:
  enum class State : uint8_t { idle, resolving, connecting, shaking_hands, open };
  void on_events(uint32_t events) override;
  void resolve();
  void connect_next();
  Result<> connect(const sockaddr_storage& to, socklen_t size, int family);
  Result<> begin_tls();
  void advance_handshake();
  bool send_kept();
  void drop_socket();
  // Tells the owner in a later step of this turn.
  void lose(std::string why);

  io::Reactor& reactor_;
  const ClientTarget target_;
  ClientSocketOwner& owner_;
  State state_ = State::idle;
  uint64_t dial_ = 0;  // tells news of an earlier dial
  std::vector<SockAddr> addresses_;
  size_t next_address_ = 0;
  Fd fd_;  // until TLS takes it over
  bool registered_ = false, looking_up_ = false;
  std::unique_ptr<tls::Stream> tls_;
  std::string unsent_;
  std::unique_ptr<io::Buffers> buffers_;
  std::unique_ptr<io::Resolver> resolver_;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

}  // namespace nodemesh::http

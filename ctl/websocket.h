// A client's WebSocket (RFC 6455), as much as one exchange through the API server takes: the upgrade, whole
// binary messages, pings answered, no extension. Strict: what a server may not send ends the connection.
// Sans-I/O; hostile input; one thread.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/reason.h"

namespace nodemesh::ctl {

// 16 random bytes in base64 (4.1), and what the server must answer to it (4.2.2).
Result<std::string> make_websocket_key();
std::string websocket_accept(std::string_view key);

// The server's answer to the upgrade, without the empty line at its end: 101, and our subprotocol.
Result<> check_upgrade(std::string_view head, std::string_view key, std::string_view subprotocol);

class WebSocketReader {
 public:
  static constexpr size_t kMaxMessage = 16 << 20;

  class Owner {
   public:
    virtual Result<> on_message(std::string_view bytes) = 0;  // binary
    virtual void on_ping(std::string_view payload) = 0;       // answer it by a pong
    virtual void on_close() = 0;                              // nothing follows

   protected:
    ~Owner() = default;
  };

  explicit WebSocketReader(Owner& owner) : owner_(owner) {}
  // Takes what came; an Error, the owner's too, says that the connection is of no more use.
  Result<> feed(std::string_view bytes);

 private:
  // How many of `bytes` the frame took; 0: more are needed.
  Result<size_t> take_frame(std::string_view bytes);
  Result<> on_frame(uint8_t opcode, bool last, std::string_view payload);

  Owner& owner_;
  std::string unread_, message_;
  bool in_message_ = false, closed_ = false;
};

enum class WebSocketFrame : uint8_t { binary = 2, close = 8, pong = 10 };
// One frame as a client sends it: masked (5.3) with fresh random bytes.
Result<std::string> websocket_frame(WebSocketFrame kind, std::string_view payload);

}  // namespace nodemesh::ctl

// One direction of an HTTP/1.x connection (RFC 9110, 9112): bytes in, messages out, no I/O. Strict, without a
// switch: whatever two readers could take differently is refused, since the message is written anew from
// what this one understood. What has a meaning between two neighbours only (RFC 9110 7.6.1) ends here:
// framing, Connection and what it names, Keep-Alive, TE, Upgrade. Owned by one connection; one thread;
// hostile input.
//
// Refused by name: line ends other than CRLF, white space before a colon or at the start of a line, empty
// names, bytes below 0x20 but tab, Transfer-Encoding beside Content-Length or other than one `chunked`, more
// than one Content-Length or Host, signs in numbers, chunk extensions over 256 bytes, fragments, and a
// request for an authority that its Host does not name.
#pragma once

#include <cstddef>
#include <cstdint>
#include <expected>
#include <span>
#include <string>
#include <string_view>

#include "base/reason.h"
#include "http/header_block.h"

namespace nodemesh::http {

struct H1Limits {
  size_t head_bytes = 60 * 1024;          // of a head, and of trailers; more is 431
  size_t request_line_bytes = 16 * 1024;  // more is 414
  size_t fields = 100;                    // of a head, and of trailers; more is 431
};

// Why a message was refused: what a client is answered before the connection is closed (a bad response is
// the client's 502), and what logs and metrics say.
struct H1Refusal {
  int status = 400;
  Error error;
};

class H1Owner {
 public:
  // A head; with `end` no body follows. Of a response also each interim one (1xx but 101), which does not end
  // it. An Upgrade that is asked for, or agreed to by 101, is in `head.protocol`, in lower case.
  virtual void on_head(HeaderBlock& head, bool end) = 0;
  virtual void on_body(std::span<const uint8_t> bytes) = 0;  // valid during the call
  virtual void on_trailers(HeaderBlock& trailers) = 0;       // between the body and its end; not without any
  virtual void on_end() = 0;                                 // of a message whose head did not say `end`

 protected:
  ~H1Owner() = default;
};

class H1Reader {
 public:
  enum class Role : uint8_t { requests, responses };

  // `owner` and `limits` outlive it.
  H1Reader(Role role, H1Owner& owner, const H1Limits& limits) : owner_(owner), limits_(limits), role_(role) {}

  // Responses: the method that the next one answers, which decides whether it has a body (RFC 9112 6.3).
  void expect(std::string_view method);
  // Reads until the message ends or `bytes` do, and says how many were used. What follows a message belongs
  // to the next: call next() first. After a refusal the reader is good for destruction only.
  std::expected<size_t, H1Refusal> feed(std::span<const uint8_t> bytes);
  // The peer ended its side. An Error: in the midst of a message, which is then truncated.
  Result<> eof();

  bool done() const { return state_ == State::done; }
  // After done(): makes ready for the next message. REQUIRES keep_alive().
  void next();
  // Nothing of a message has come yet.
  bool idle() const { return state_ == State::head && pending_.empty(); }
  // The sender lets the connection carry another message after this one.
  bool keep_alive() const { return keep_alive_; }
  // The version of the message's sender: 0 or 1.
  int minor_version() const { return minor_; }
  // Bytes of Content-Length; -1 where the message does not say, or has no body.
  int64_t length() const { return length_; }
  // From a 101, or a 2xx to CONNECT, on all bytes are body, until eof().
  bool tunnel() const { return tunnel_; }
  // The body goes on until the connection ends: that, or a response that says nothing of its length.
  bool ends_with_connection() const { return state_ == State::until_eof; }
  // Bytes of memory held for a head that has not come whole.
  size_t held() const { return pending_.capacity(); }

 private:
  enum class State : uint8_t { head, body, chunk_size, chunk, chunk_end, trailers, until_eof, done };
  using Refused = std::unexpected<H1Refusal>;
  template <class T = void>
  using Read = std::expected<T, H1Refusal>;

  Read<size_t> take_block(std::string_view bytes);
  Read<> on_block(std::string_view block);
  Read<> read_head(std::string_view head);
  Read<> read_request_line(std::string_view line);
  Read<> read_target(std::string_view target);
  Read<> read_status_line(std::string_view line);
  Read<> read_version(std::string_view version);
  Read<> read_fields(std::string_view lines, bool trailers);
  Read<> read_field(std::string_view line, bool trailers);
  Read<> read_framing_field(std::string_view name, std::string_view value);
  Read<> read_host(std::string_view value);
  Read<> end_of_request();
  Read<> end_of_response();
  Read<> read_connection();
  void begin_body(bool has_body);
  size_t take_body(std::string_view bytes);
  Read<size_t> take_chunk_size(std::string_view bytes);
  Read<size_t> take_chunk_end(std::string_view bytes);
  void message_ended();

  H1Owner& owner_;
  const H1Limits& limits_;
  const Role role_;
  State state_ = State::head;
  bool head_method_ = false, connect_method_ = false;  // responses: of the request
  bool chunked_ = false, have_host_ = false, keep_alive_ = true, tunnel_ = false;
  bool close_named_ = false, keep_alive_named_ = false, upgrade_named_ = false;  // by Connection
  uint8_t minor_ = 1;
  int64_t length_ = -1;
  uint64_t left_ = 0;      // of the body, or of a chunk
  bool after_cr_ = false;  // in or after a chunk
  int interims_ = 0;
  size_t line_size_ = 0, digits_ = 0,
         extension_bytes_ = 0;  // of a chunk's first line; of all their extensions
  std::string pending_;         // a head, or trailers, that have not come whole
  std::string upgrade_;
  HeaderBlock block_;
};

}  // namespace nodemesh::http

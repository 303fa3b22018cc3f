// One HTTP/2 connection as a sans-I/O state machine over nghttp2: bytes in by feed(), bytes out by drain(),
// events to the stream's owner. nghttp2 keeps the protocol; this adds our limits (decoded header bytes and
// fields, control-frame budget, rapid reset, empty frames), flow control by what the owner has really got rid
// of, and payload that goes from the owner's socket straight into the output buffer. Owned by one connection;
// one thread.
#pragma once

#include <sys/uio.h>

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/reason.h"
#include "http/header_block.h"

struct nghttp2_session;

namespace nodemesh::http {

// RFC 9113 section 7.
enum class H2Error : uint32_t {
  none = 0,
  protocol_error = 1,
  internal_error = 2,
  flow_control_error = 3,
  refused_stream = 7,
  cancel = 8,
  connect_error = 10,
  enhance_your_calm = 11,
};

// What a PING asks, so that the answer to one is not taken for the answer to another.
enum class H2Ping : uint8_t { alive, drain };

struct H2Limits {
  uint32_t concurrent_streams = 200;      // advertised to the peer
  uint32_t stream_window = 256 * 1024;    // what a stalled stream may make us hold
  uint32_t connection_window = 16 << 20;  // larger than any stream's, so that no stream can stop the others
  uint32_t frame_size = 1 << 20;          // accepted from the peer
  uint32_t data_frame = 64 * 1024;        // sent, if the peer accepts it
  size_t header_bytes = 60 * 1024;        // decoded, names and values and 32 per field (RFC 9113 10.5.1)
  size_t header_fields = 100;
  size_t control_frames = 1000;  // between two ping(), more than DATA and HEADERS frames account for

  // The same with what a peer gets that is not one of our own agents.
  H2Limits for_stranger() const;
};

// The owner of one stream. Calls come from feed() and drain() of its session; it may reset its stream but
// must not destroy the session within one.
class H2Stream {
 public:
  struct Pull {
    size_t bytes = 0;
    bool end = false;    // no more after these: END_STREAM
    bool reset = false;  // the source broke: RST_STREAM with connect_error
  };

  virtual void on_headers(const HeaderBlock& headers, bool end) = 0;  // a response, or trailers
  // What came for this stream in a row, in pieces that stay valid only during the call. Give the bytes back
  // with consume() once they are passed on.
  virtual void on_data(std::span<const iovec> pieces, size_t bytes) = 0;
  virtual void on_end() = 0;  // END_STREAM came
  // Fill `out`; nothing and no end means: ask again after resume().
  virtual Pull pull(std::span<uint8_t> out) = 0;
  // The stream is over, cleanly (none) or not; no call follows. `processed`: false when the peer surely did
  // not look at it (REFUSED_STREAM, or above the last id of GOAWAY).
  virtual void on_close(H2Error error, bool processed) = 0;

  int32_t stream_id() const { return id_; }

 protected:
  ~H2Stream() = default;

 private:
  friend class H2Session;
  friend struct H2Callbacks;
  int32_t id_ = -1;
  bool answered_ = false;     // server: the peer has been sent the response's header
  H2Stream* next_ = nullptr;  // the session's list of streams with an owner
  H2Stream* previous_ = nullptr;
};

class H2SessionOwner {
 public:
  // A request, with `end` one without a body. Give it an owner by accept() within the call, or answer or
  // reset it.
  virtual void on_request(int32_t id, const HeaderBlock& headers, bool end) = 0;
  virtual void on_request_refused(const Error&) {}  // its header block was too large; the stream is reset
  virtual void on_goaway() {}                       // no new streams on this connection
  virtual void on_ping_ack(H2Ping) {}

 protected:
  ~H2SessionOwner() = default;
};

class H2Session {
 public:
  enum class Role { client, server };
  H2Session(Role role, H2SessionOwner& owner, const H2Limits& limits) : H2Session(role, owner) {
    announce(limits);
  }
  // For a client that opens streams before it knows its peer: announce() comes before the first feed() and
  // drain().
  H2Session(Role role, H2SessionOwner& owner);
  void announce(const H2Limits& limits);
  ~H2Session();
  H2Session(const H2Session&) = delete;
  H2Session& operator=(const H2Session&) = delete;

  // Parses; false when the connection must be closed (error() says why; drain() once more for the GOAWAY).
  bool feed(std::span<const uint8_t> bytes);
  // Serialises what is due into `out` (at least kDrainRoom) and returns how much; less than `out.size() -
  // kDrainRoom` means that nothing more is due.
  static constexpr size_t kDrainRoom = 96 * 1024;
  size_t drain(std::span<uint8_t> out);
  bool wants_write() const;
  // Nothing is open and nothing is due: the connection may be closed.
  bool finished() const;

  // Client: opens a stream; the owner lives until on_close. Error when ids or streams are used up.
  Result<> open(H2Stream& stream, std::span<const HeaderField> headers);
  // Server: makes `stream` the owner of request `id`.
  void accept(H2Stream& stream, int32_t id);
  // Server: answers; the stream's data is pulled then.
  void respond(H2Stream& stream, std::span<const HeaderField> headers);
  // Server: answers with a status alone and detaches the owner. The stream is over as soon as that has gone,
  // whether or not the peer ends its own side.
  void refuse(H2Stream& stream, std::string_view status);
  void refuse(int32_t id, std::string_view status);  // of a request without an owner
  void resume(H2Stream& stream);
  void reset(H2Stream& stream, H2Error error);
  void reset(int32_t id, H2Error error);
  // Detaches the owner, which may then be destroyed; the stream is reset if it is still open.
  void abandon(H2Stream& stream, H2Error error);
  void consume(H2Stream& stream, size_t bytes);
  // Tells every owner that its stream is over (internal_error): the connection is lost.
  void close_all(bool processed);
  // Sends a PING. The owner does so at an interval, which renews the budget of control frames: a connection
  // that is quiet for days exchanges more of them than a flood has.
  void ping(H2Ping kind);
  // The two halves of a graceful GOAWAY (RFC 9113 6.8): an announcement, whose PING the peer answers by
  // on_ping_ack(drain), and then the last stream.
  void shutdown_notice();
  void refuse_new_streams();

  bool settings_received() const { return settings_received_; }
  uint32_t peer_max_streams() const;
  size_t open_streams() const { return open_streams_; }
  bool going_away() const { return going_away_; }
  const Error& error() const { return error_; }

 private:
  friend struct H2Callbacks;
  int fail_session(Reason reason, std::string message, H2Error code);
  void attach(H2Stream& stream, int32_t id);
  void detach(H2Stream& stream);
  void deliver();

  H2SessionOwner& owner_;
  H2Limits limits_;
  const Role role_;
  nghttp2_session* session_ = nullptr;
  HeaderBlock block_;
  size_t block_bytes_ = 0;
  bool block_refused_ = false;
  H2Stream* streams_ = nullptr;
  H2Stream* batch_owner_ = nullptr;  // of the DATA in `batch_`, during feed()
  std::vector<iovec> batch_;
  size_t batch_bytes_ = 0;
  uint8_t* out_ = nullptr;  // during drain()
  size_t out_size_ = 0, out_used_ = 0;
  size_t open_streams_ = 0;
  uint64_t control_frames_ = 0, work_frames_ = 0;
  uint64_t requests_ = 0, early_resets_ = 0;
  uint32_t empty_frames_ = 0;
  bool settings_received_ = false, going_away_ = false, failed_ = false;
  Error error_{Reason::NONE, {}};
};

}  // namespace nodemesh::http

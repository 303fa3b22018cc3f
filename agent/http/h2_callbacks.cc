#include "http/h2_callbacks.h"

#include <algorithm>
#include <charconv>
#include <cstring>
#include <optional>

namespace nodemesh::http {
namespace {

constexpr size_t kFrameHeader = 9;
// What HPACK counts per field beside its bytes (RFC 7541 4.1).
constexpr size_t kFieldOverhead = 32;
// Rapid reset (CVE-2023-44487): judged once this many requests were seen; a client may reset up to half of
// them.
constexpr uint64_t kResetGrace = 500;
// The longest piece of frames other than DATA that nghttp2 hands out at once is 16 KiB and a header; so much
// stays free behind every DATA frame, since one may follow it before drain() looks at the room again.
constexpr size_t kControlRoom = 24 * 1024;
// Pieces of one stream's DATA handed over at once; more than that many small frames in a row are rare.
constexpr size_t kBatchPieces = 64;

std::string_view text(const uint8_t* data, size_t size) {
  return {reinterpret_cast<const char*>(data), size};
}

bool is_work(uint8_t type) {
  return type == NGHTTP2_DATA || type == NGHTTP2_HEADERS;
}

}  // namespace

std::array<uint8_t, 8> ping_data(H2Ping kind) {
  return {'n', 'o', 'd', 'e', 'm', 'e', 's', static_cast<uint8_t>(kind)};
}

struct H2Callbacks {
  static H2Session& self(void* user) { return *static_cast<H2Session*>(user); }
  static H2Stream* stream(nghttp2_session* session, int32_t id) {
    return static_cast<H2Stream*>(nghttp2_session_get_stream_user_data(session, id));
  }

  static int on_begin_frame(nghttp2_session*, const nghttp2_frame_hd* head, void* user) {
    auto& me = self(user);
    if (is_work(head->type)) {
      me.work_frames_ += 1;
    } else if (++me.control_frames_ > me.limits_.control_frames + 8 * me.work_frames_) {
      return me.fail_session(Reason::H2_FLOOD, "too many control frames", H2Error::enhance_your_calm);
    }
    // A frame that carries nothing costs us as much as a full one.
    bool empty = head->type == NGHTTP2_DATA && head->length == 0 && !(head->flags & NGHTTP2_FLAG_END_STREAM);
    me.empty_frames_ = empty ? me.empty_frames_ + 1 : (is_work(head->type) ? 0 : me.empty_frames_);
    if (me.empty_frames_ > 16) {
      return me.fail_session(Reason::H2_FLOOD, "too many empty DATA frames", H2Error::enhance_your_calm);
    }
    return 0;
  }

  static int on_begin_headers(nghttp2_session*, const nghttp2_frame* frame, void* user) {
    auto& me = self(user);
    // Here, because every stream that has begun ends in on_close, those whose header is refused too.
    if (frame->headers.cat == NGHTTP2_HCAT_REQUEST) {
      me.requests_ += 1;
      me.open_streams_ += 1;
    }
    me.block_.clear();
    me.block_bytes_ = 0;
    me.block_refused_ = false;
    return 0;
  }

  static int on_header(nghttp2_session* session, const nghttp2_frame* frame, const uint8_t* name,
                       size_t name_size, const uint8_t* value, size_t value_size, uint8_t, void* user) {
    auto& me = self(user);
    me.block_bytes_ += name_size + value_size + kFieldOverhead;
    if (me.block_bytes_ > me.limits_.header_bytes || me.block_.used >= me.limits_.header_fields) {
      if (me.block_bytes_ > 16 * me.limits_.header_bytes) {
        return me.fail_session(Reason::HEADERS_TOO_LARGE, "endless header block", H2Error::enhance_your_calm);
      }
      if (!me.block_refused_) {
        me.block_refused_ = true;
        nghttp2_submit_rst_stream(session, NGHTTP2_FLAG_NONE, frame->hd.stream_id, NGHTTP2_ENHANCE_YOUR_CALM);
        if (frame->hd.type == NGHTTP2_HEADERS && frame->headers.cat == NGHTTP2_HCAT_REQUEST) {
          me.owner_.on_request_refused({Reason::HEADERS_TOO_LARGE, "header block over the limit"});
        }
      }
      return 0;
    }
    store(me.block_, text(name, name_size), text(value, value_size));
    return 0;
  }

  static void store(HeaderBlock& block, std::string_view name, std::string_view value) {
    if (name.front() == ':') {
      if (name == ":method") block.method = value;
      if (name == ":scheme") block.scheme = value;
      if (name == ":authority") block.authority = value;
      if (name == ":path") block.path = value;
      if (name == ":protocol") block.protocol = value;
      if (name == ":status") std::from_chars(value.data(), value.data() + value.size(), block.status);
      return;
    }
    if (block.used == block.fields.size()) block.fields.emplace_back();
    block.fields[block.used].first = name;
    block.fields[block.used].second = value;
    block.used += 1;
  }

  static int on_frame(nghttp2_session* session, const nghttp2_frame* frame, void* user) {
    auto& me = self(user);
    if (frame->hd.type != NGHTTP2_DATA || (frame->hd.flags & NGHTTP2_FLAG_END_STREAM)) me.deliver();
    bool end = frame->hd.flags & NGHTTP2_FLAG_END_STREAM;
    switch (frame->hd.type) {
      case NGHTTP2_HEADERS:
        return on_headers_frame(me, session, frame, end);
      case NGHTTP2_DATA:
        if (auto* owner = end ? stream(session, frame->hd.stream_id) : nullptr) owner->on_end();
        return 0;
      case NGHTTP2_SETTINGS:
        if (!(frame->hd.flags & NGHTTP2_FLAG_ACK)) me.settings_received_ = true;
        return 0;
      case NGHTTP2_PING:
        if (auto kind = ping_of(frame->ping); kind && (frame->hd.flags & NGHTTP2_FLAG_ACK))
          me.owner_.on_ping_ack(*kind);
        return 0;
      case NGHTTP2_GOAWAY:
        me.going_away_ = true;
        me.owner_.on_goaway();
        return 0;
      case NGHTTP2_RST_STREAM:
        if (me.role_ == H2Session::Role::server && is_early_reset(session, frame->hd.stream_id) &&
            ++me.early_resets_ > kResetGrace && me.early_resets_ * 2 > me.requests_) {
          return me.fail_session(Reason::H2_FLOOD, "too many streams reset by the peer",
                                 H2Error::enhance_your_calm);
        }
        return 0;
      default:
        return 0;
    }
  }

  // Only what ping() sent; anything else answers nothing.
  static std::optional<H2Ping> ping_of(const nghttp2_ping& frame) {
    for (H2Ping known : {H2Ping::alive, H2Ping::drain}) {
      if (std::ranges::equal(frame.opaque_data, ping_data(known))) return known;
    }
    return std::nullopt;
  }

  // Before the answer. Later resets are how applications end connections, and how clients take a refusal.
  static bool is_early_reset(nghttp2_session* session, int32_t id) {
    auto* owner = stream(session, id);
    return owner != nullptr ? !owner->answered_ : nghttp2_session_get_stream_local_close(session, id) == 0;
  }

  static int on_headers_frame(H2Session& me, nghttp2_session* session, const nghttp2_frame* frame, bool end) {
    int32_t id = frame->hd.stream_id;
    if (me.block_refused_) return 0;
    if (frame->headers.cat == NGHTTP2_HCAT_REQUEST) {
      me.owner_.on_request(id, me.block_, end);
      if (auto* owner = end ? stream(session, id) : nullptr) owner->on_end();
      return 0;
    }
    if (auto* owner = stream(session, id)) {
      owner->on_headers(me.block_, end);
      // The owner may have abandoned the stream meanwhile.
      if (end && (owner = stream(session, id)) != nullptr) owner->on_end();
    }
    return 0;
  }

  static int on_data(nghttp2_session* session, uint8_t, int32_t id, const uint8_t* data, size_t size,
                     void* user) {
    // The connection's window is given back at once: only a stream's own window may hold that stream back,
    // else one stalled reader would stop every other stream of the connection.
    nghttp2_session_consume_connection(session, size);
    auto* owner = stream(session, id);
    if (owner == nullptr) {
      nghttp2_session_consume_stream(session, id, size);
      return 0;
    }
    auto& me = self(user);
    if (me.batch_owner_ != owner || me.batch_.size() == kBatchPieces) {
      me.deliver();
      owner = stream(session, id);  // which may have been abandoned meanwhile
      if (owner == nullptr) {
        nghttp2_session_consume_stream(session, id, size);
        return 0;
      }
    }
    me.batch_owner_ = owner;
    me.batch_.push_back({const_cast<uint8_t*>(data), size});
    me.batch_bytes_ += size;
    return 0;
  }

  static int on_sent(nghttp2_session* session, const nghttp2_frame* frame, void* user) {
    auto& me = self(user);
    // A refusal is our whole answer: the peer is told to stop sending (RFC 9113 8.1), or a stream that it
    // never ends would hold its place. Not before the answer has gone, since a queued RST_STREAM drops it.
    if (me.role_ == H2Session::Role::server && frame->hd.type == NGHTTP2_HEADERS &&
        (frame->hd.flags & NGHTTP2_FLAG_END_STREAM) &&
        nghttp2_session_get_stream_remote_close(session, frame->hd.stream_id) == 0) {
      me.reset(frame->hd.stream_id, H2Error::none);
    }
    // The answer to a PING behind the announcement says that the peer has seen it. PINGs overtake what is
    // queued.
    if (frame->hd.type == NGHTTP2_GOAWAY && frame->goaway.error_code == NGHTTP2_NO_ERROR &&
        frame->goaway.last_stream_id == INT32_MAX) {
      me.ping(H2Ping::drain);
    }
    // The library judged the peer by itself and says so with its GOAWAY.
    if (frame->hd.type != NGHTTP2_GOAWAY || frame->goaway.error_code == NGHTTP2_NO_ERROR || me.failed_)
      return 0;
    bool flood = frame->goaway.error_code == NGHTTP2_ENHANCE_YOUR_CALM;
    me.failed_ = true;
    me.error_ = {flood ? Reason::H2_FLOOD : Reason::H2_PROTOCOL,
                 std::string(text(frame->goaway.opaque_data, frame->goaway.opaque_data_len))};
    if (me.error_.message.empty()) me.error_.message = nghttp2_http2_strerror(frame->goaway.error_code);
    return 0;
  }

  static int on_close(nghttp2_session* session, int32_t id, uint32_t code, void* user) {
    auto& me = self(user);
    me.deliver();
    if (me.open_streams_ > 0) me.open_streams_ -= 1;
    if (auto* owner = stream(session, id)) {
      nghttp2_session_set_stream_user_data(session, id, nullptr);
      me.detach(*owner);
      owner->on_close(static_cast<H2Error>(code), code != NGHTTP2_REFUSED_STREAM);
    }
    return 0;
  }

  static ssize_t length(nghttp2_session*, uint8_t, int32_t, int32_t session_window, int32_t stream_window,
                        uint32_t max_frame, void* user) {
    auto limit = static_cast<int64_t>(std::min(self(user).limits_.data_frame, max_frame));
    return static_cast<ssize_t>(
        std::max<int64_t>(1, std::min({limit, int64_t{session_window}, int64_t{stream_window}})));
  }

  // The payload goes right behind the place of its frame header; send_data() then writes the header before
  // it.
  static ssize_t read(nghttp2_session* session, int32_t id, uint8_t*, size_t size, uint32_t* flags,
                      nghttp2_data_source* source, void* user) {
    auto& me = self(user);
    size_t room = me.out_size_ - me.out_used_;
    if (room < kFrameHeader + size + kControlRoom) return NGHTTP2_ERR_PAUSE;
    auto& owner = *static_cast<H2Stream*>(source->ptr);
    owner.answered_ = true;  // the body is asked for when the header has gone
    auto pulled = owner.pull({me.out_ + me.out_used_ + kFrameHeader, size});
    if (pulled.reset) nghttp2_submit_rst_stream(session, NGHTTP2_FLAG_NONE, id, NGHTTP2_CONNECT_ERROR);
    if (pulled.reset || (pulled.bytes == 0 && !pulled.end)) return NGHTTP2_ERR_DEFERRED;
    *flags |= NGHTTP2_DATA_FLAG_NO_COPY;
    if (pulled.end) *flags |= NGHTTP2_DATA_FLAG_EOF;
    return static_cast<ssize_t>(pulled.bytes);
  }

  static int send_data(nghttp2_session*, nghttp2_frame*, const uint8_t* head, size_t size,
                       nghttp2_data_source*, void* user) {
    auto& me = self(user);
    std::memcpy(me.out_ + me.out_used_, head, kFrameHeader);
    me.out_used_ += kFrameHeader + size;
    me.work_frames_ += 1;
    return 0;
  }

  static const nghttp2_session_callbacks* callbacks() {
    static const nghttp2_session_callbacks* const kMade = [] {
      nghttp2_session_callbacks* made = nullptr;
      nghttp2_session_callbacks_new(&made);
      nghttp2_session_callbacks_set_on_begin_frame_callback(made, on_begin_frame);
      nghttp2_session_callbacks_set_on_begin_headers_callback(made, on_begin_headers);
      nghttp2_session_callbacks_set_on_header_callback(made, on_header);
      nghttp2_session_callbacks_set_on_frame_recv_callback(made, on_frame);
      nghttp2_session_callbacks_set_on_data_chunk_recv_callback(made, on_data);
      nghttp2_session_callbacks_set_on_stream_close_callback(made, on_close);
      nghttp2_session_callbacks_set_on_frame_send_callback(made, on_sent);
      nghttp2_session_callbacks_set_data_source_read_length_callback(made, length);
      nghttp2_session_callbacks_set_send_data_callback(made, send_data);
      return made;
    }();
    return kMade;
  }

  static nghttp2_option* options() {
    static nghttp2_option* const kMade = [] {
      nghttp2_option* made = nullptr;
      nghttp2_option_new(&made);
      nghttp2_option_set_no_auto_window_update(made, 1);
      nghttp2_option_set_no_closed_streams(made, 1);
      nghttp2_option_set_peer_max_concurrent_streams(made, 100);
      // Peers are authenticated and applications do reset connections: our ratio rule judges resets, not a
      // fixed rate.
      nghttp2_option_set_stream_reset_rate_limit(made, 1'000'000, 100'000);
      return made;
    }();
    return kMade;
  }
};

const nghttp2_session_callbacks* h2_callbacks() {
  return H2Callbacks::callbacks();
}
const nghttp2_option* h2_options() {
  return H2Callbacks::options();
}
ssize_t h2_read(nghttp2_session* session, int32_t id, uint8_t* buffer, size_t size, uint32_t* flags,
                nghttp2_data_source* source, void* user) {
  return H2Callbacks::read(session, id, buffer, size, flags, source, user);
}

}  // namespace nodemesh::http

#include "http/h2_session.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "http/h2_callbacks.h"

namespace nodemesh::http {
namespace {

nghttp2_nv to_nv(const HeaderField& field) {
  auto* name = reinterpret_cast<uint8_t*>(const_cast<char*>(field.name.data()));
  auto* value = reinterpret_cast<uint8_t*>(const_cast<char*>(field.value.data()));
  auto flags = static_cast<uint8_t>(field.once ? NGHTTP2_NV_FLAG_NO_INDEX : NGHTTP2_NV_FLAG_NONE);
  return {name, value, field.name.size(), field.value.size(), flags};
}

}  // namespace

H2Limits H2Limits::for_stranger() const {
  H2Limits limits = *this;
  limits.concurrent_streams = std::min<uint32_t>(concurrent_streams, 100);
  limits.stream_window = std::min<uint32_t>(stream_window, 64 * 1024);
  limits.connection_window = std::min<uint32_t>(connection_window, 1 << 20);
  return limits;
}

H2Session::H2Session(Role role, H2SessionOwner& owner) : owner_(owner), role_(role) {
  auto make = role == Role::client ? nghttp2_session_client_new2 : nghttp2_session_server_new2;
  if (make(&session_, h2_callbacks(), this, h2_options()) != 0) std::abort();  // out of memory
}

void H2Session::announce(const H2Limits& limits) {
  limits_ = limits;
  std::vector<nghttp2_settings_entry> settings = {
      {NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, role_ == Role::client ? 0 : limits.concurrent_streams},
      {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, limits.stream_window},
      {NGHTTP2_SETTINGS_MAX_FRAME_SIZE, limits.frame_size},
      {NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE, static_cast<uint32_t>(limits.header_bytes)},
  };
  if (role_ == Role::client) settings.push_back({NGHTTP2_SETTINGS_ENABLE_PUSH, 0});
  nghttp2_submit_settings(session_, NGHTTP2_FLAG_NONE, settings.data(), settings.size());
  nghttp2_session_set_local_window_size(session_, NGHTTP2_FLAG_NONE, 0,
                                        static_cast<int32_t>(limits.connection_window));
}

H2Session::~H2Session() {
  nghttp2_session_del(session_);
}

int H2Session::fail_session(Reason reason, std::string message, H2Error code) {
  failed_ = true;
  error_ = {reason, std::move(message)};
  nghttp2_session_terminate_session(session_, static_cast<uint32_t>(code));
  return NGHTTP2_ERR_CALLBACK_FAILURE;
}

bool H2Session::feed(std::span<const uint8_t> bytes) {
  ssize_t taken = nghttp2_session_mem_recv(session_, bytes.data(), bytes.size());
  deliver();
  if (taken >= 0) return true;
  if (!failed_) {
    bool flood = taken == NGHTTP2_ERR_FLOODED;
    auto text = nghttp2_strerror(static_cast<int>(taken));
    fail_session(flood ? Reason::H2_FLOOD : Reason::H2_PROTOCOL, text,
                 flood ? H2Error::enhance_your_calm : H2Error::protocol_error);
  }
  return false;
}

size_t H2Session::drain(std::span<uint8_t> out) {
  out_ = out.data();
  out_size_ = out.size();
  out_used_ = 0;
  while (out_size_ - out_used_ >= kDrainRoom) {
    const uint8_t* data = nullptr;
    ssize_t size = nghttp2_session_mem_send(session_, &data);
    if (size <= 0) break;
    std::memcpy(out_ + out_used_, data, static_cast<size_t>(size));
    out_used_ += static_cast<size_t>(size);
  }
  out_ = nullptr;
  return out_used_;
}

bool H2Session::wants_write() const {
  return nghttp2_session_want_write(session_) != 0;
}

bool H2Session::finished() const {
  return nghttp2_session_want_write(session_) == 0 && nghttp2_session_want_read(session_) == 0;
}

Result<> H2Session::open(H2Stream& stream, std::span<const HeaderField> headers) {
  nghttp2_nv fields[16];
  size_t count = std::min(headers.size(), std::size(fields));
  std::transform(headers.begin(), headers.begin() + static_cast<ptrdiff_t>(count), fields, to_nv);
  nghttp2_data_provider provider{{.ptr = &stream}, h2_read};
  int32_t id = nghttp2_submit_request(session_, nullptr, fields, count, &provider, &stream);
  if (id < 0) return fail(Reason::TUNNEL_LOST, nghttp2_strerror(id));
  attach(stream, id);
  open_streams_ += 1;
  return {};
}

void H2Session::accept(H2Stream& stream, int32_t id) {
  attach(stream, id);
  nghttp2_session_set_stream_user_data(session_, id, &stream);
}

void H2Session::respond(H2Stream& stream, std::span<const HeaderField> headers) {
  nghttp2_nv fields[16];
  size_t count = std::min(headers.size(), std::size(fields));
  std::transform(headers.begin(), headers.begin() + static_cast<ptrdiff_t>(count), fields, to_nv);
  nghttp2_data_provider provider{{.ptr = &stream}, h2_read};
  nghttp2_submit_response(session_, stream.id_, fields, count, &provider);
}

void H2Session::refuse(H2Stream& stream, std::string_view status) {
  if (stream.id_ <= 0) return;
  refuse(stream.id_, status);
  nghttp2_session_set_stream_user_data(session_, stream.id_, nullptr);
  detach(stream);
}

void H2Session::refuse(int32_t id, std::string_view status) {
  nghttp2_nv field = to_nv({":status", status});
  nghttp2_submit_response(session_, id, &field, 1, nullptr);
}

void H2Session::resume(H2Stream& stream) {
  if (stream.id_ > 0) nghttp2_session_resume_data(session_, stream.id_);
}

void H2Session::reset(H2Stream& stream, H2Error error) {
  if (stream.id_ > 0) reset(stream.id_, error);
}

void H2Session::reset(int32_t id, H2Error error) {
  nghttp2_submit_rst_stream(session_, NGHTTP2_FLAG_NONE, id, static_cast<uint32_t>(error));
}

void H2Session::abandon(H2Stream& stream, H2Error error) {
  if (stream.id_ <= 0) return;
  nghttp2_session_set_stream_user_data(session_, stream.id_, nullptr);
  reset(stream.id_, error);
  detach(stream);
}

void H2Session::attach(H2Stream& stream, int32_t id) {
  stream.id_ = id;
  stream.answered_ = false;
  stream.previous_ = nullptr;
  stream.next_ = streams_;
  if (streams_ != nullptr) streams_->previous_ = &stream;
  streams_ = &stream;
}

void H2Session::detach(H2Stream& stream) {
  stream.id_ = -1;
  (stream.previous_ != nullptr ? stream.previous_->next_ : streams_) = stream.next_;
  if (stream.next_ != nullptr) stream.next_->previous_ = stream.previous_;
  if (batch_owner_ != &stream) return;
  batch_owner_ = nullptr;
  batch_.clear();
  batch_bytes_ = 0;
}

void H2Session::deliver() {
  if (batch_owner_ == nullptr) return;
  H2Stream* owner = std::exchange(batch_owner_, nullptr);
  owner->on_data(batch_, std::exchange(batch_bytes_, 0));
  batch_.clear();
}

void H2Session::close_all(bool processed) {
  while (streams_ != nullptr) {
    H2Stream& stream = *streams_;
    nghttp2_session_set_stream_user_data(session_, stream.id_, nullptr);
    detach(stream);
    stream.on_close(H2Error::internal_error, processed);
  }
}

void H2Session::consume(H2Stream& stream, size_t bytes) {
  if (stream.id_ > 0) nghttp2_session_consume_stream(session_, stream.id_, bytes);
}

void H2Session::ping(H2Ping kind) {
  control_frames_ /= 2;
  work_frames_ /= 2;
  nghttp2_submit_ping(session_, NGHTTP2_FLAG_NONE, ping_data(kind).data());
}
void H2Session::shutdown_notice() {
  nghttp2_submit_shutdown_notice(session_);
}
void H2Session::refuse_new_streams() {
  nghttp2_submit_goaway(session_, NGHTTP2_FLAG_NONE, nghttp2_session_get_last_proc_stream_id(session_),
                        NGHTTP2_NO_ERROR, nullptr, 0);
}

uint32_t H2Session::peer_max_streams() const {
  return nghttp2_session_get_remote_settings(session_, NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS);
}

}  // namespace nodemesh::http

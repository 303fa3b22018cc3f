#include "http/grpc_client.h"

#include <nghttp2/nghttp2.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <list>

#include <fmt/format.h>

namespace nodemesh::http {
namespace {

constexpr size_t kMaxMessage = 1 << 20;
constexpr size_t kPrefix = 5;  // one byte "compressed", four of length, big-endian
constexpr size_t kMaxFields = 64 * 1024;

std::string frame_message(std::string_view message) {
  std::string out(kPrefix, '\0');
  auto size = static_cast<uint32_t>(message.size());
  for (int i = 0; i < 4; ++i) out[1 + i] = static_cast<char>(size >> (24 - 8 * i));
  return out.append(message);
}

nghttp2_nv field(std::string_view name, std::string_view value) {
  auto bytes = [](std::string_view text) {
    return reinterpret_cast<uint8_t*>(const_cast<char*>(text.data()));
  };
  return {bytes(name), bytes(value), name.size(), value.size(), NGHTTP2_NV_FLAG_NONE};
}

int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

// HTTP status to gRPC code for answers that never reached a gRPC server (grpc/http-grpc-status-mapping).
GrpcCode code_of_http(std::string_view status) {
  if (status == "400") return GrpcCode::internal;
  if (status == "401") return GrpcCode::unauthenticated;
  if (status == "403") return GrpcCode::permission_denied;
  if (status == "404") return GrpcCode::unimplemented;
  if (status == "429" || status == "502" || status == "503" || status == "504") return GrpcCode::unavailable;
  return GrpcCode::unknown;
}

}  // namespace

Result<std::string_view> parse_grpc_message(std::string_view body) {
  if (body.size() < kPrefix) return fail("gRPC reply: shorter than its 5-byte prefix");
  if (body[0] != 0) return fail("gRPC reply: compressed, though no compression was offered");
  uint32_t size = 0;
  for (int i = 1; i <= 4; ++i) size = size << 8 | static_cast<uint8_t>(body[i]);
  if (size > kMaxMessage)
    return fail(fmt::format("gRPC reply: message of {} bytes, the limit is {}", size, kMaxMessage));
  if (body.size() - kPrefix != size) {
    return fail(fmt::format("gRPC reply: prefix says {} bytes, {} came", size, body.size() - kPrefix));
  }
  return body.substr(kPrefix);
}

std::string decode_grpc_text(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '%' && i + 2 < text.size() && hex_digit(text[i + 1]) >= 0 && hex_digit(text[i + 2]) >= 0) {
      out += static_cast<char>(hex_digit(text[i + 1]) << 4 | hex_digit(text[i + 2]));
      i += 2;
    } else {
      out += text[i];
    }
  }
  return out;
}

class GrpcClient::Connection final : public io::EventHandler {
 public:
  Connection(io::Reactor& reactor, Target target) : reactor_(reactor), target_(std::move(target)) {}
  ~Connection() {
    *alive_ = false;
    close_socket();
    for (auto& pending : std::exchange(calls_, {})) {
      pending->done(GrpcReply{GrpcCode::cancelled, "the client is going away", {}});
    }
  }

  void call(Call call, Done done) {
    auto pending = std::make_unique<Pending>(*this, std::move(call), std::move(done));
    pending->deadline.arm(reactor_, pending->call.timeout);
    calls_.push_back(std::move(pending));
    kick_.schedule(reactor_);
  }
  bool connected() const { return session_ != nullptr; }

 private:
  struct Pending {
    Pending(Connection& owner, Call c, Done d)
        : call(std::move(c)), done(std::move(d)), deadline([this, &owner] { owner.expire(*this); }) {}
    Call call;
    Done done;
    io::Timer deadline;
    std::string body;  // out: the framed request
    size_t sent = 0;
    int32_t stream = 0;
    std::string reply, http_status, content_type, grpc_status, grpc_message;
    size_t field_bytes = 0;
    bool too_large = false, finished = false;
    GrpcReply result;
  };

  // Dials, or puts waiting calls on the connection. Runs at the end of a turn, so never inside call().
  void kick() {
    if (!socket_) return dial();
    if (session_ == nullptr) return;  // still connecting
    if (nghttp2_session_check_request_allowed(session_) == 0) return lose("the server is going away");
    for (auto& pending : calls_) {
      if (pending->stream == 0) submit(*pending);
    }
    flush();
  }

  void dial() {
    sockaddr_storage native{};
    socklen_t size = 0;
    int family = AF_UNIX;
    if (target_.address) {
      family = target_.address->ip.is_v4() ? AF_INET : AF_INET6;
      size = target_.address->to_native(native, family);
    } else {
      auto& path = reinterpret_cast<sockaddr_un&>(native);
      if (target_.unix_path.size() >= sizeof path.sun_path)
        return lose("the socket path is longer than 107 bytes");
      path.sun_family = AF_UNIX;
      std::memcpy(path.sun_path, target_.unix_path.data(), target_.unix_path.size());
      size = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + target_.unix_path.size() + 1);
    }
    socket_.reset(::socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    if (!socket_) return lose(std::string("socket: ") + std::strerror(errno));
    int connected = ::connect(socket_.get(), reinterpret_cast<sockaddr*>(&native), size);
    if (connected != 0 && errno != EINPROGRESS) return lose(std::string("connect: ") + std::strerror(errno));
    if (auto added = reactor_.add(socket_.get(), *this); !added) return lose(added.error().message);
    registered_ = true;
    if (connected == 0) start_session();
  }

  void start_session() {
    nghttp2_session_callbacks* callbacks = nullptr;
    nghttp2_session_callbacks_new(&callbacks);
    nghttp2_session_callbacks_set_on_header_callback(callbacks, on_header);
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, on_data);
    nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, on_close);
    nghttp2_session_client_new(&session_, callbacks, this);
    nghttp2_session_callbacks_del(callbacks);
    nghttp2_settings_entry settings[] = {{NGHTTP2_SETTINGS_ENABLE_PUSH, 0},
                                         {NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE, kMaxFields}};
    nghttp2_submit_settings(session_, NGHTTP2_FLAG_NONE, settings, std::size(settings));
    kick();
  }

  void submit(Pending& pending) {
    pending.body = frame_message(pending.call.message);
    std::vector<nghttp2_nv> fields = {
        field(":method", "POST"),          field(":scheme", "http"),
        field(":path", pending.call.path), field(":authority", target_.authority),
        field("te", "trailers"),           field("content-type", "application/grpc")};
    std::string timeout =
        fmt::format("{}m", std::clamp<int64_t>(pending.call.timeout.count(), 1, 99'999'999));
    fields.push_back(field("grpc-timeout", timeout));
    for (const auto& [name, value] : pending.call.metadata) fields.push_back(field(name, value));
    nghttp2_data_provider body{.source = {.ptr = &pending}, .read_callback = read_body};
    int32_t stream = nghttp2_submit_request(session_, nullptr, fields.data(), fields.size(), &body, &pending);
    if (stream < 0) {
      complete(pending, {GrpcCode::internal, std::string("HTTP/2: ") + nghttp2_strerror(stream), {}});
    } else {
      pending.stream = stream;
    }
  }

  void on_events(uint32_t) override {
    auto alive = alive_;
    if (session_ == nullptr) {
      int error = 0;
      socklen_t size = sizeof error;
      ::getsockopt(socket_.get(), SOL_SOCKET, SO_ERROR, &error, &size);
      if (error != 0) return lose(std::string("connect: ") + std::strerror(error));
      sockaddr_storage peer{};
      socklen_t peer_size = sizeof peer;
      if (::getpeername(socket_.get(), reinterpret_cast<sockaddr*>(&peer), &peer_size) != 0)
        return;  // not yet
      start_session();
      if (!*alive || session_ == nullptr) return;
    }
    if (!read_all()) return;
    flush();
  }

  // False when the connection or this object is gone.
  bool read_all() {
    uint8_t chunk[16 * 1024];
    while (true) {
      ssize_t got = ::recv(socket_.get(), chunk, sizeof chunk, 0);
      if (got < 0 && errno == EINTR) continue;
      if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return true;
      if (got <= 0) {
        lose(got == 0 ? "the server closed the connection" : std::string("recv: ") + std::strerror(errno));
        return false;
      }
      ssize_t used = nghttp2_session_mem_recv(session_, chunk, static_cast<size_t>(got));
      if (used != got) {
        lose(std::string("HTTP/2: ") + nghttp2_strerror(static_cast<int>(used)));
        return false;
      }
    }
  }

  void flush() {
    while (true) {
      if (unsent_.empty()) {
        const uint8_t* data = nullptr;
        ssize_t size = nghttp2_session_mem_send(session_, &data);
        if (size < 0) return lose(std::string("HTTP/2: ") + nghttp2_strerror(static_cast<int>(size)));
        if (size == 0) break;
        unsent_.assign(reinterpret_cast<const char*>(data), static_cast<size_t>(size));
      }
      ssize_t sent = ::send(socket_.get(), unsent_.data(), unsent_.size(), MSG_NOSIGNAL);
      if (sent < 0 && errno == EINTR) continue;
      if (sent < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) break;
      if (sent < 0) return lose(std::string("send: ") + std::strerror(errno));
      unsent_.erase(0, static_cast<size_t>(sent));
    }
    if (unsent_.empty() && nghttp2_session_want_read(session_) == 0 &&
        nghttp2_session_want_write(session_) == 0) {
      return lose("the server is going away");
    }
    deliver();
  }

  void expire(Pending& pending) {
    GrpcReply late{
        GrpcCode::deadline_exceeded, fmt::format("no answer within {} ms", pending.call.timeout.count()), {}};
    complete(pending, std::move(late));
    if (session_ != nullptr && pending.stream > 0) {
      nghttp2_session_set_stream_user_data(session_, pending.stream, nullptr);
      nghttp2_submit_rst_stream(session_, NGHTTP2_FLAG_NONE, pending.stream, NGHTTP2_CANCEL);
      return flush();
    }
    deliver();
  }

  void complete(Pending& pending, GrpcReply reply) {
    if (pending.finished) return;
    pending.finished = true;
    pending.result = std::move(reply);
  }

  // Runs the callbacks of finished calls. A callback may make calls or destroy the client.
  void deliver() {
    auto alive = alive_;
    while (*alive) {
      auto found = std::ranges::find_if(calls_, [](const auto& pending) { return pending->finished; });
      if (found == calls_.end()) return;
      auto pending = std::move(*found);
      calls_.erase(found);
      pending->deadline.cancel();
      pending->done(std::move(pending->result));
    }
  }

  void lose(std::string why) {
    close_socket();
    for (auto& pending : calls_) {
      complete(*pending, {GrpcCode::unavailable, fmt::format("{}: {}", name(), why), {}});
    }
    deliver();
  }

  void close_socket() {
    if (registered_) reactor_.remove(socket_.get(), *this, true);
    registered_ = false;
    socket_.reset();
    nghttp2_session_del(session_);
    session_ = nullptr;
    unsent_.clear();
  }

  std::string name() const {
    return target_.address ? target_.address->to_string() : "unix:" + target_.unix_path;
  }

  // What a closed stream amounts to.
  static GrpcReply judge(const Pending& pending, uint32_t error) {
    if (pending.too_large)
      return {GrpcCode::resource_exhausted, "the reply exceeds 1 MiB, or its fields 64 KiB", {}};
    if (pending.grpc_status.empty()) {
      if (error != NGHTTP2_NO_ERROR)
        return {GrpcCode::unavailable, std::string("stream reset: ") + nghttp2_http2_strerror(error), {}};
      return {code_of_http(pending.http_status), "no grpc-status; HTTP status " + pending.http_status, {}};
    }
    int code = -1;
    const std::string& text = pending.grpc_status;
    auto [end, bad] = std::from_chars(text.data(), text.data() + text.size(), code);
    if (bad != std::errc() || end != text.data() + text.size() || code < 0 || code > 16) {
      return {GrpcCode::unknown, "grpc-status is not a number of 0 to 16: " + text, {}};
    }
    if (code != 0) return {static_cast<GrpcCode>(code), decode_grpc_text(pending.grpc_message), {}};
    if (!pending.content_type.starts_with("application/grpc"))
      return {GrpcCode::unknown, "content-type is not gRPC: " + pending.content_type, {}};
    auto message = parse_grpc_message(pending.reply);
    if (!message) return {GrpcCode::internal, message.error().message, {}};
    return {GrpcCode::ok, {}, std::string(*message)};
  }

  static ssize_t read_body(nghttp2_session*, int32_t, uint8_t* out, size_t size, uint32_t* flags,
                           nghttp2_data_source* source, void*) {
    auto& pending = *static_cast<Pending*>(source->ptr);
    size_t part = std::min(size, pending.body.size() - pending.sent);
    std::memcpy(out, pending.body.data() + pending.sent, part);
    pending.sent += part;
    if (pending.sent == pending.body.size()) *flags |= NGHTTP2_DATA_FLAG_EOF;
    return static_cast<ssize_t>(part);
  }

  static int on_header(nghttp2_session* session, const nghttp2_frame* frame, const uint8_t* name,
                       size_t name_size, const uint8_t* value, size_t value_size, uint8_t, void*) {
    auto* pending = static_cast<Pending*>(nghttp2_session_get_stream_user_data(session, frame->hd.stream_id));
    if (pending == nullptr) return 0;
    pending->field_bytes += name_size + value_size + 32;
    if (pending->field_bytes > kMaxFields) return abandon(session, *pending);
    std::string_view key(reinterpret_cast<const char*>(name), name_size);
    std::string text(reinterpret_cast<const char*>(value), value_size);
    if (key == ":status")
      pending->http_status = std::move(text);
    else if (key == "content-type")
      pending->content_type = std::move(text);
    else if (key == "grpc-status")
      pending->grpc_status = std::move(text);
    else if (key == "grpc-message")
      pending->grpc_message = std::move(text);
    return 0;
  }

  static int on_data(nghttp2_session* session, uint8_t, int32_t stream, const uint8_t* data, size_t size,
                     void*) {
    auto* pending = static_cast<Pending*>(nghttp2_session_get_stream_user_data(session, stream));
    if (pending == nullptr || pending->too_large) return 0;
    if (pending->reply.size() + size > kMaxMessage + kPrefix) return abandon(session, *pending);
    pending->reply.append(reinterpret_cast<const char*>(data), size);
    return 0;
  }

  static int abandon(nghttp2_session* session, Pending& pending) {
    pending.too_large = true;
    nghttp2_submit_rst_stream(session, NGHTTP2_FLAG_NONE, pending.stream, NGHTTP2_CANCEL);
    return 0;
  }

  static int on_close(nghttp2_session* session, int32_t stream, uint32_t error, void* self) {
    auto* pending = static_cast<Pending*>(nghttp2_session_get_stream_user_data(session, stream));
    if (pending != nullptr) static_cast<Connection*>(self)->complete(*pending, judge(*pending, error));
    return 0;
  }

  io::Reactor& reactor_;
  Target target_;
  Fd socket_;
  bool registered_ = false;
  nghttp2_session* session_ = nullptr;
  std::string unsent_;
  std::list<std::unique_ptr<Pending>> calls_;
  io::Deferred kick_{[this] { kick(); }};
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

GrpcClient::GrpcClient(io::Reactor& reactor, Target target)
    : connection_(std::make_unique<Connection>(reactor, std::move(target))) {}
GrpcClient::~GrpcClient() = default;

void GrpcClient::call(Call call, Done done) {
  connection_->call(std::move(call), std::move(done));
}
bool GrpcClient::connected() const {
  return connection_->connected();
}

}  // namespace nodemesh::http

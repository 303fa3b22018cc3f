#include "http/grpc_client.h"

#include <nghttp2/nghttp2.h>

#include <algorithm>
#include <charconv>
#include <cstring>
#include <list>

#include <fmt/format.h>

#include "base/addr.h"

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

class GrpcClient::Connection final : public ClientSocketOwner {
 public:
  Connection(io::Reactor& reactor, Target target)
      : reactor_(reactor),
        authority_(authority_of(target)),
        secure_(target.tls.has_value()),
        socket_(reactor, std::move(target), *this) {}
  ~Connection() {
    *alive_ = false;
    close_socket();
    for (auto& pending : std::exchange(calls_, {})) {
      pending->done(GrpcReply{GrpcCode::cancelled, "the client is going away", {}});
    }
  }

  void call(Call call, Done done) {
    auto pending = std::make_unique<Pending>(*this, std::move(call), std::move(done));
    pending->begun = reactor_.now();
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
    Monotonic::time_point begun;
    std::string body;  // out: the framed request
    size_t sent = 0;
    int32_t stream = 0;
    std::string reply, http_status, content_type, grpc_status, grpc_message;
    size_t field_bytes = 0;
    bool too_large = false, finished = false;
    GrpcReply result;
  };

  // RFC 9113 8.3.1: the host and port, as a client of a browser's kind would name it.
  static std::string authority_of(const Target& target) {
    if (!target.unix_path.empty()) return "localhost";
    if (!target.tls || Addr::parse(target.tls->server_name)) return target.name();
    return fmt::format("{}:{}", target.tls->server_name, target.port);
  }

  // Dials, or puts waiting calls on the connection. Runs at the end of a turn, so never inside call().
  void kick() {
    bool under_way = std::ranges::any_of(calls_, [](const auto& pending) { return pending->stream != 0; });
    if (session_ != nullptr && unavailable_ && !under_way) close_socket();
    if (socket_.idle()) return socket_.dial();
    if (session_ == nullptr) return;  // still connecting
    if (nghttp2_session_check_request_allowed(session_) == 0) return lose("the server is going away");
    for (auto& pending : calls_) {
      if (pending->stream == 0) submit(*pending);
    }
    flush();
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
        field(":method", "POST"),          field(":scheme", secure_ ? "https" : "http"),
        field(":path", pending.call.path), field(":authority", authority_),
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

  void on_open() override {
    auto alive = alive_;
    start_session();
    if (*alive && session_ != nullptr) on_ready();
  }
  void on_lost(std::string why) override { lose(std::move(why)); }
  void on_ready() override {
    if (read_all()) flush();
  }

  // False when the connection or this object is gone.
  bool read_all() {
    while (true) {
      auto got = socket_.read();
      if (!got.bytes.empty()) {
        last_heard_ = reactor_.now();
        ssize_t used = nghttp2_session_mem_recv(session_, got.bytes.data(), got.bytes.size());
        if (used != static_cast<ssize_t>(got.bytes.size())) {
          lose(std::string("HTTP/2: ") + nghttp2_strerror(static_cast<int>(used)));
          return false;
        }
      }
      if (got.ended) {
        lose(got.error.empty() ? "the server closed the connection" : got.error);
        return false;
      }
      if (got.drained) return true;
    }
  }

  void flush() {
    while (!socket_.blocked()) {
      const uint8_t* data = nullptr;
      ssize_t size = nghttp2_session_mem_send(session_, &data);
      if (size < 0) return lose(std::string("HTTP/2: ") + nghttp2_strerror(static_cast<int>(size)));
      if (size == 0) break;
      if (!socket_.write({reinterpret_cast<const char*>(data), static_cast<size_t>(size)}))
        return lose("the connection broke while sending");
    }
    if (!socket_.blocked() && nghttp2_session_want_read(session_) == 0 &&
        nghttp2_session_want_write(session_) == 0) {
      return lose("the server is going away");
    }
    deliver();
  }

  void expire(Pending& pending) {
    GrpcReply late{
        GrpcCode::deadline_exceeded, fmt::format("no answer within {} ms", pending.call.timeout.count()), {}};
    complete(pending, std::move(late));
    if (!socket_.idle() && last_heard_ <= pending.begun) return lose("no word from the server");
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
      if (pending->result.code == GrpcCode::unavailable) unavailable_ = true;
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
    socket_.close();
    nghttp2_session_del(session_);
    session_ = nullptr;
    unavailable_ = false;
  }

  std::string name() const { return socket_.target().name(); }

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
  const std::string authority_;
  const bool secure_;
  ClientSocket socket_;
  nghttp2_session* session_ = nullptr;
  Monotonic::time_point last_heard_{};
  std::list<std::unique_ptr<Pending>> calls_;
  io::Deferred kick_{[this] { kick(); }};
  // The server answered that it cannot serve now: another replica behind the same name may, so the next call
  // dials.
  bool unavailable_ = false;
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

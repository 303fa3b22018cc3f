#include "support/api_server.h"

#include <netinet/in.h>
#include <sys/socket.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace nodemesh::test {
namespace {

void must(bool fine) {
  if (!fine) std::abort();
}

int choose_alpn(SSL*, const unsigned char** out, unsigned char* size, const unsigned char* offered,
                unsigned int offered_size, void* wanted) {
  const auto& name = *static_cast<const std::string*>(wanted);
  for (unsigned int i = 0; i < offered_size; i += 1u + offered[i]) {
    if (std::string_view(reinterpret_cast<const char*>(offered + i + 1), offered[i]) != name) continue;
    *out = offered + i + 1;
    *size = offered[i];
    return SSL_TLSEXT_ERR_OK;
  }
  return SSL_TLSEXT_ERR_NOACK;
}

std::span<const uint8_t> bytes_of(std::string_view text) {
  return {reinterpret_cast<const uint8_t*>(text.data()), text.size()};
}

}  // namespace

class ApiServer::Connection final : private io::EventHandler, private http::H2SessionOwner {
 public:
  Connection(ApiServer& server, Fd fd, tls::SslPtr ssl)
      : server_(server), stream_(std::move(ssl), std::move(fd), server.buffers_) {
    must(server_.reactor_.add(stream_.fd(), *this).has_value());
  }
  ~Connection() { leave(); }

  void leave() {
    if (std::exchange(left_, true)) return;
    server_.reactor_.remove(stream_.fd(), *this);
    ::shutdown(stream_.fd(), SHUT_RDWR);
    for (auto& call : server_.calls_) {
      if (call->connection == this) call->open = false, call->connection = nullptr;
    }
    for (auto& part : streams_) {
      if (session_) session_->abandon(*part, http::H2Error::cancel);
    }
    std::erase_if(server_.connections_, [&](auto& other) {
      if (other.get() != this) return false;
      server_.gone_.push_back(std::move(other));
      return true;
    });
  }

  void start(Call& call, int status, const Headers& headers, const std::string* body) {
    std::string code = std::to_string(status);
    if (session_) {
      auto& part = stream_of(call);
      std::vector<http::HeaderField> fields = {{":status", code}};
      for (const auto& [name, value] : headers) fields.push_back({name, value});
      session_->respond(part, fields);
      if (body != nullptr) part.out += *body, part.ended = true, session_->resume(part);
      return flush();
    }
    std::string head = "HTTP/1.1 " + code + " X\r\n";
    for (const auto& [name, value] : headers) head += name + ": " + value + "\r\n";
    head += body != nullptr ? "Content-Length: " + std::to_string(body->size()) + "\r\n\r\n" + *body
                            : std::string("Transfer-Encoding: chunked\r\n\r\n");
    raw(head);
  }

  void send(Call& call, std::string_view bytes, bool end) {
    if (session_) {
      auto& part = stream_of(call);
      part.out += bytes;
      part.ended = end;
      session_->resume(part);
      return flush();
    }
    char size[20];
    std::snprintf(size, sizeof size, "%zx\r\n", bytes.size());
    std::string text;
    if (!bytes.empty()) text.append(size).append(bytes).append("\r\n");
    if (end) text += "0\r\n\r\n";
    raw(text);
  }

  void raw(std::string_view bytes) {
    must(stream_.seal(bytes_of(bytes)));
    stream_.flush();
  }

  void go_away() {
    if (session_) session_->refuse_new_streams(), flush();
  }

 private:
  struct Part final : http::H2Stream {
    explicit Part(Call& of) : call(of) {}
    void on_headers(const http::HeaderBlock&, bool) override {}
    void on_data(std::span<const iovec> pieces, size_t bytes) override {
      for (const auto& piece : pieces)
        call.body.append(static_cast<const char*>(piece.iov_base), piece.iov_len);
      session->consume(*this, bytes);
    }
    void on_end() override { server->handle(call); }
    Pull pull(std::span<uint8_t> space) override {
      size_t part = std::min(space.size(), out.size());
      std::memcpy(space.data(), out.data(), part);
      out.erase(0, part);
      return {.bytes = part, .end = ended && out.empty()};
    }
    void on_close(http::H2Error, bool) override { call.open = false, call.connection = nullptr; }
    Call& call;
    http::H2Session* session = nullptr;
    ApiServer* server = nullptr;
    std::string out;
    bool ended = false;
  };

  Part& stream_of(Call& call) {
    auto found = std::ranges::find_if(streams_, [&](const auto& part) { return &part->call == &call; });
    must(found != streams_.end());
    return **found;
  }

  Call& new_call() {
    auto& call = *server_.calls_.emplace_back(std::make_unique<Call>());
    call.connection = this;
    call.number = server_.calls_.size();
    return call;
  }

  static void note(Call& call, std::string_view name, std::string_view value) {
    if (name == "authorization") call.authorization = value;
    if (name == "accept") call.accept = value;
    if (name == "content-type") call.content_type = value;
  }

  void on_request(int32_t id, const http::HeaderBlock& headers, bool) override {
    auto& call = new_call();
    call.method = headers.method;
    call.target = headers.path;
    for (size_t i = 0; i < headers.used; ++i) note(call, headers.fields[i].first, headers.fields[i].second);
    auto& part = *streams_.emplace_back(std::make_unique<Part>(call));
    part.session = session_.get();
    part.server = &server_;
    session_->accept(part, id);
  }

  void on_events(uint32_t events) override {
    if (server_.frozen_) return;
    stream_.mark_readable((events & (EPOLLRDHUP | EPOLLHUP)) != 0);
    if (!shaken_) {
      auto state = stream_.handshake();
      stream_.flush();
      if (state == tls::Stream::State::want) return;
      if (state != tls::Stream::State::ok) return leave();
      shaken_ = true;
      if (server_.options_.h2)
        session_ = std::make_unique<http::H2Session>(
            http::H2Session::Role::server, static_cast<http::H2SessionOwner&>(*this), http::H2Limits{});
    }
    inside_ = true;
    while (!left_) {
      auto read = stream_.read();
      if (!read.bytes.empty()) take(read.bytes);
      if (read.state == tls::Stream::State::closed || read.state == tls::Stream::State::failed)
        return leave();
      if (read.drained) break;
    }
    inside_ = false;
    if (!left_) flush();
  }

  void take(std::span<const uint8_t> bytes) {
    if (session_) {
      if (!session_->feed(bytes)) leave();
      return;
    }
    in_.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    size_t end = in_.find("\r\n\r\n");
    if (end == in_.npos) return;
    std::string head = in_.substr(0, end + 2);
    size_t length = 0;
    if (size_t at = head.find("Content-Length: "); at != head.npos) length = std::stoul(head.substr(at + 16));
    if (in_.size() < end + 4 + length) return;
    auto& call = new_call();
    call.method = head.substr(0, head.find(' '));
    call.target = head.substr(call.method.size() + 1, head.find(" HTTP/") - call.method.size() - 1);
    for (size_t at = head.find("\r\n") + 2; at < head.size();) {
      size_t stop = head.find("\r\n", at), colon = head.find(": ", at);
      std::string name = head.substr(at, colon - at);
      std::ranges::transform(name, name.begin(), [](unsigned char c) { return std::tolower(c); });
      note(call, name, std::string_view(head).substr(colon + 2, stop - colon - 2));
      at = stop + 2;
    }
    call.body = in_.substr(end + 4, length);
    in_.erase(0, end + 4 + length);
    server_.handle(call);
  }

  void flush() {
    if (inside_ || left_ || !session_) return;
    while (!stream_.blocked() || (stream_.flush() && !stream_.blocked())) {
      size_t size = session_->drain({server_.buffers_.gather.get(), io::Buffers::kGather});
      if (size == 0) break;
      stream_.seal({server_.buffers_.gather.get(), size});
      stream_.flush();
    }
  }

  ApiServer& server_;
  tls::Stream stream_;
  bool shaken_ = false, inside_ = false, left_ = false;
  std::unique_ptr<http::H2Session> session_;
  std::vector<std::unique_ptr<Part>> streams_;
  std::string in_;
};

void ApiServer::Call::answer(int status, std::string_view text, Headers headers) {
  std::string whole(text);
  if (connection != nullptr) connection->start(*this, status, headers, &whole);
}
void ApiServer::Call::start(int status, Headers headers) {
  if (connection != nullptr) connection->start(*this, status, headers, nullptr);
}
void ApiServer::Call::send(std::string_view bytes) {
  if (connection != nullptr) connection->send(*this, bytes, false);
}
void ApiServer::Call::end() {
  if (connection != nullptr) connection->send(*this, "", true);
}
void ApiServer::Call::raw(std::string_view bytes) {
  if (connection != nullptr) connection->raw(bytes);
}
void ApiServer::Call::cut() {
  if (connection != nullptr) connection->leave();
}

ApiServer::ApiServer(io::Reactor& reactor, const TestCa& ca, Options options)
    : reactor_(reactor), options_(std::move(options)) {
  static std::string h2 = "h2", h1 = "http/1.1";
  context_.reset(SSL_CTX_new(TLS_server_method()));
  SSL_CTX_set_mode(context_.get(), SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
  SSL_CTX_set_alpn_select_cb(context_.get(), choose_alpn, options_.h2 ? &h2 : &h1);
  auto issued = ca.issue(options_.certificate);
  auto chain = *tls::parse_certificates(issued.chain_pem);
  auto key = *tls::parse_private_key(issued.key_pem);
  SSL_CTX_use_certificate(context_.get(), chain.front().get());
  for (size_t i = 1; i < chain.size(); ++i) SSL_CTX_add1_chain_cert(context_.get(), chain[i].get());
  must(SSL_CTX_use_PrivateKey(context_.get(), key.get()) == 1);
  if (options_.clients != nullptr) {
    auto roots = *tls::parse_certificates(options_.clients->root_pem());
    X509_STORE_add_cert(SSL_CTX_get_cert_store(context_.get()), roots.front().get());
    SSL_CTX_set_verify(context_.get(), SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, nullptr);
  }
  listener_.reset(::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  sockaddr_in address{.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
  socklen_t size = sizeof address;
  must(::bind(listener_.get(), reinterpret_cast<sockaddr*>(&address), size) == 0);
  must(::listen(listener_.get(), 64) == 0);
  must(::getsockname(listener_.get(), reinterpret_cast<sockaddr*>(&address), &size) == 0);
  port_ = ntohs(address.sin_port);
  must(reactor_.add(listener_.get(), *this, EPOLLIN).has_value());
}

ApiServer::~ApiServer() {
  cut_all();
  reactor_.remove(listener_.get(), *this);
}

void ApiServer::on_events(uint32_t) {
  for (;;) {
    Fd fd(::accept4(listener_.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
    if (!fd) return;
    ++accepted;
    tls::SslPtr ssl(SSL_new(context_.get()));
    SSL_set_accept_state(ssl.get());
    connections_.push_back(std::make_unique<Connection>(*this, std::move(fd), std::move(ssl)));
  }
}

void ApiServer::cut_all() {
  while (!connections_.empty()) connections_.back()->leave();
}

void ApiServer::go_away() {
  for (auto& connection : connections_) connection->go_away();
}

void ApiServer::freeze() {
  frozen_ = true;
}

}  // namespace nodemesh::test

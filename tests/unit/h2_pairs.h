// HTTP/2 sessions that talk to each other in memory, and to peers that write their frames by hand.
#pragma once

#include <doctest/doctest.h>

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "http/h2_session.h"
#include "io_pairs.h"

namespace nodemesh::test {

using namespace http;

struct SessionStream final : H2Stream {
  void on_headers(const HeaderBlock& headers, bool) override { status = headers.status; }
  void on_data(std::span<const iovec> pieces, size_t bytes) override {
    size_t sum = 0;
    for (const auto& piece : pieces) {
      in.append(static_cast<const char*>(piece.iov_base), piece.iov_len);
      sum += piece.iov_len;
    }
    CHECK(sum == bytes);
    if (session != nullptr && consumes) session->consume(*this, bytes);
    if (then) then();
  }
  void on_end() override { ended = true; }
  Pull pull(std::span<uint8_t> buffer) override {
    if (break_source) return {.reset = true};
    size_t count = std::min(buffer.size(), out.size());
    std::copy_n(out.begin(), count, buffer.begin());
    out.erase(0, count);
    return {count, out.empty() && end_after};
  }
  void on_close(H2Error with, bool was_processed) override {
    ++closed;
    error = with;
    processed = was_processed;
  }

  H2Session* session = nullptr;
  std::function<void()> then;  // at the end of on_data
  std::string in, out;
  int status = 0, closed = 0;
  bool ended = false, end_after = false, consumes = true, break_source = false, processed = true;
  H2Error error = H2Error::none;
};

// One side: a session, and as a server a stream for every request.
struct Side final : H2SessionOwner {
  explicit Side(H2Session::Role role, H2Limits limits = {}) : session(role, *this, limits) {}
  void on_request(int32_t id, const HeaderBlock& headers, bool) override {
    methods.push_back(headers.method);
    authorities.push_back(headers.authority);
    fields = headers.used;
    if (!accept) return;
    auto& stream = requests[id] = std::make_unique<SessionStream>();
    stream->session = &session;
    stream->consumes = consume;
    session.accept(*stream, id);
    if (!answer) return;
    HeaderField ok[] = {{":status", "200"}};
    session.respond(*stream, ok);
  }
  void on_request_refused(const Error& error) override { refused.push_back(error.reason); }
  void on_goaway() override { ++goaways; }
  void on_ping_ack(H2Ping kind) override { ++ping_acks[kind]; }

  bool accept = true, answer = true, consume = true;
  int goaways = 0;
  std::map<H2Ping, int> ping_acks;
  size_t fields = 0;
  std::vector<std::string> methods, authorities;
  std::vector<Reason> refused;
  std::map<int32_t, std::unique_ptr<SessionStream>> requests;
  H2Session session;
};

struct Wire {
  explicit Wire(H2Limits at_server = {}, H2Limits at_client = {})
      : client(H2Session::Role::client, at_client), server(H2Session::Role::server, at_server) {}
  ~Wire() {
    client.session.close_all(true);
    server.session.close_all(true);
  }
  bool move(Side& from, Side& to) {
    size_t count = from.session.drain(buffer);
    CHECK(count <= buffer.size());
    if (count > 0) to.session.feed({buffer.data(), count});
    return count > 0;
  }
  void settle() {
    for (bool moved = true; moved;) {
      moved = move(client, server);
      moved = move(server, client) || moved;
    }
  }
  SessionStream& open(std::string_view authority = "10.0.0.1:80") {
    auto& stream = *streams.emplace_back(std::make_unique<SessionStream>());
    stream.session = &client.session;
    HeaderField fields[] = {{":method", "CONNECT"}, {":authority", authority}};
    REQUIRE(client.session.open(stream, fields));
    return stream;
  }
  SessionStream& at_server(const SessionStream& stream) { return *server.requests.at(stream.stream_id()); }

  std::vector<uint8_t> buffer = std::vector<uint8_t>(256 * 1024);
  std::deque<std::unique_ptr<SessionStream>> streams;
  Side client, server;
};

inline std::string frame(uint8_t type, uint8_t flags, uint32_t stream, std::string_view payload) {
  std::string out;
  for (int shift : {16, 8, 0}) out += static_cast<char>(payload.size() >> shift);
  out += static_cast<char>(type);
  out += static_cast<char>(flags);
  for (int shift : {24, 16, 8, 0}) out += static_cast<char>(stream >> shift);
  return out.append(payload);
}

inline std::string literal(std::string_view name, std::string_view value) {
  REQUIRE(name.size() < 127);
  auto number = [](size_t size) {
    std::string out;
    if (size < 127) return out += static_cast<char>(size);
    out += 127;
    for (size -= 127; size >= 128; size /= 128) out += static_cast<char>(size % 128 | 128);
    return out += static_cast<char>(size);
  };
  std::string out(1, 0);
  return out.append(number(name.size())).append(name).append(number(value.size())).append(value);
}

inline std::string connect_block() {
  return literal(":method", "CONNECT") + literal(":authority", "10.0.0.1:80");
}

// A server with a client that writes its frames by hand.
struct Hostile {
  explicit Hostile(H2Limits limits = {}) : server(H2Session::Role::server, limits) {
    REQUIRE(feed("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, "")));
  }
  ~Hostile() { server.session.close_all(true); }
  bool feed(std::string_view bytes) {
    return server.session.feed({reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()});
  }
  // Feeds the piece until the session refuses; how often that took.
  int until_refused(const std::function<std::string(int)>& piece, int most) {
    for (int i = 0; i < most; ++i) {
      if (!feed(piece(i))) return i;
      drain();
    }
    return most;
  }
  std::string drain() {
    std::vector<uint8_t> buffer(256 * 1024);
    return {reinterpret_cast<char*>(buffer.data()), server.session.drain(buffer)};
  }
  void open(uint32_t id) { REQUIRE(feed(frame(1, 4, id, connect_block()))); }
  Side server;
};

}  // namespace nodemesh::test

// Bytes from a peer into an HTTP/2 session of either role, cut where the input says, with owners that
// consume, answer, reset, abandon and break by its bits. Whatever comes: no crash, counts that fit, output
// that fits its buffer.
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <vector>

#include "http/h2_session.h"

namespace {

using namespace nodemesh::http;

struct Owner final : H2Stream {
  Owner(H2Session& of, uint8_t bits) : session(of), how(bits) {}
  void on_headers(const HeaderBlock&, bool) override {
    alive();
    if (how & 1) leave();
  }
  void on_data(std::span<const iovec> pieces, size_t bytes) override {
    alive();
    size_t sum = 0;
    for (const auto& piece : pieces) {
      for (size_t i = 0; i < piece.iov_len; ++i) sum += static_cast<const uint8_t*>(piece.iov_base)[i] >= 0;
    }
    if (sum != bytes) std::abort();
    if (how & 2) session.consume(*this, bytes);
    if (how & 4) leave();
  }
  void on_end() override {
    alive();
    if (how & 8) leave();
  }
  Pull pull(std::span<uint8_t> out) override {
    alive();
    size_t count = std::min<size_t>(out.size(), left);
    std::fill_n(out.begin(), count, how);
    left -= count;
    return {count, left == 0 && (how & 16) != 0, left == 0 && (how & 32) != 0};
  }
  void on_close(H2Error, bool) override {
    alive();
    over = true;
  }
  void alive() const {
    if (over) std::abort();  // a call after the stream was over
  }
  void leave() {
    over = true;
    session.abandon(*this, H2Error::cancel);
  }
  H2Session& session;
  uint8_t how;
  size_t left = 100'000;
  bool over = false;
};

struct Side final : H2SessionOwner {
  Side(H2Session::Role role, uint8_t bits)
      : how(bits), session(role, *this, {.concurrent_streams = 20, .control_frames = 100}) {
    if (role == H2Session::Role::server) return;
    for (int i = 0; i < 3; ++i) {
      auto& owner = owners.emplace_back(std::make_unique<Owner>(session, static_cast<uint8_t>(bits >> i)));
      HeaderField fields[] = {{":method", "CONNECT"}, {":authority", "10.0.0.1:80"}};
      if (!session.open(*owner, fields)) owner->over = true;
    }
  }
  ~Side() { session.close_all(true); }
  void on_request(int32_t id, const HeaderBlock& headers, bool) override {
    auto bits = static_cast<uint8_t>(how ^ headers.authority.size() ^ static_cast<size_t>(id));
    if (headers.used > 100) std::abort();
    if ((bits & 192) == 0) return session.refuse(id, "401");
    if ((bits & 192) == 64) return session.reset(id, H2Error::refused_stream);
    auto& owner = owners.emplace_back(std::make_unique<Owner>(session, bits));
    session.accept(*owner, id);
    if ((bits & 64) == 0) {
      owner->over = true;
      return session.refuse(*owner, "401");
    }
    HeaderField ok[] = {{":status", "200"}};
    session.respond(*owner, ok);
  }
  uint8_t how;
  std::vector<std::unique_ptr<Owner>> owners;
  H2Session session;
};

void run(H2Session::Role role, uint8_t bits, std::span<const uint8_t> bytes) {
  Side side(role, bits);
  std::vector<uint8_t> out(128 * 1024);
  auto send = [&] {
    for (int i = 0; i < 16; ++i) {
      size_t count = side.session.drain(out);
      if (count > out.size()) std::abort();
      if (count == 0) return;
    }
  };
  static constexpr char kMagic[] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
  if (role == H2Session::Role::server)
    side.session.feed({reinterpret_cast<const uint8_t*>(kMagic), sizeof kMagic - 1});
  send();
  while (!bytes.empty()) {
    size_t count = std::min<size_t>(bytes.size(), bits & 1 ? 4096 : bytes[0] + 1u);
    bool fine = side.session.feed(bytes.first(count));
    send();
    size_t live = 0;
    for (const auto& owner : side.owners) live += owner->over ? 0 : 1;
    if (side.session.open_streams() < live) std::abort();
    if (!fine) {
      if (side.session.error().reason == nodemesh::Reason::NONE) std::abort();
      return;
    }
    bytes = bytes.subspan(count);
  }
  if (bits & 2) side.session.shutdown_notice(), side.session.refuse_new_streams();
  if (bits & 4) side.session.ping(H2Ping::alive);
  send();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 1) return 0;
  run(H2Session::Role::server, data[0], {data + 1, size - 1});
  run(H2Session::Role::client, data[0], {data + 1, size - 1});
  return 0;
}

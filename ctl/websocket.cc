#include "ctl/websocket.h"

#include <openssl/evp.h>
#include <openssl/rand.h>
#include <strings.h>

#include <array>
#include <span>
#include <utility>

#include "tls/openssl.h"

namespace nodemesh::ctl {
namespace {

constexpr std::string_view kGuid = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
enum Opcode : uint8_t { kContinuation = 0, kBinary = 2, kClose = 8, kPing = 9, kPong = 10 };

std::string base64(std::span<const uint8_t> bytes) {
  std::string out((bytes.size() + 2) / 3 * 4 + 1, '\0');  // OpenSSL writes a NUL
  int size = EVP_EncodeBlock(reinterpret_cast<unsigned char*>(out.data()), bytes.data(),
                             static_cast<int>(bytes.size()));
  out.resize(static_cast<size_t>(size));
  return out;
}

bool same(std::string_view a, std::string_view b) {
  return a.size() == b.size() && ::strncasecmp(a.data(), b.data(), a.size()) == 0;
}

std::string_view trimmed(std::string_view text) {
  while (text.starts_with(' ') || text.starts_with('\t')) text.remove_prefix(1);
  while (text.ends_with(' ') || text.ends_with('\t')) text.remove_suffix(1);
  return text;
}

// The one value of a field; empty where it is missing or there are several.
std::string_view field(std::string_view head, std::string_view name) {
  std::string_view value;
  int count = 0;
  for (size_t at = head.find("\r\n"); at != head.npos; at = head.find("\r\n", at)) {
    at += 2;
    std::string_view line = head.substr(at, head.find("\r\n", at) - at);
    size_t colon = line.find(':');
    if (colon == line.npos || !same(line.substr(0, colon), name)) continue;
    value = trimmed(line.substr(colon + 1));
    ++count;
  }
  return count == 1 ? value : std::string_view();
}

std::unexpected<Error> broken(std::string_view what) {
  return fail("WebSocket: the server " + std::string(what));
}

}  // namespace

Result<std::string> make_websocket_key() {
  std::array<uint8_t, 16> random;
  if (RAND_bytes(random.data(), random.size()) != 1)
    return fail("random bytes: " + tls::take_openssl_error());
  return base64(random);
}

std::string websocket_accept(std::string_view key) {
  std::string text = std::string(key) + std::string(kGuid);
  std::array<uint8_t, 20> digest{};
  unsigned size = 0;
  EVP_Digest(text.data(), text.size(), digest.data(), &size, EVP_sha1(), nullptr);
  return base64(digest);
}

Result<> check_upgrade(std::string_view head, std::string_view key, std::string_view subprotocol) {
  if (!head.starts_with("HTTP/1.1 101")) return broken("did not switch protocols");
  if (!same(field(head, "upgrade"), "websocket") || !same(field(head, "connection"), "upgrade"))
    return broken("switched to another protocol");
  if (field(head, "sec-websocket-accept") != websocket_accept(key))
    return broken("answered another's request");
  if (!field(head, "sec-websocket-extensions").empty()) return broken("uses an extension nobody asked for");
  if (field(head, "sec-websocket-protocol") != subprotocol)
    return broken("does not speak " + std::string(subprotocol));
  return {};
}

Result<> WebSocketReader::feed(std::string_view bytes) {
  unread_.append(bytes);
  size_t used = 0;
  while (!closed_) {
    auto taken = take_frame(std::string_view(unread_).substr(used));
    if (!taken) return std::unexpected(taken.error());
    if (*taken == 0) break;
    used += *taken;
  }
  unread_.erase(0, used);
  return {};
}

Result<size_t> WebSocketReader::take_frame(std::string_view bytes) {
  if (bytes.size() < 2) return 0;
  auto byte = [&](size_t i) { return static_cast<uint8_t>(bytes[i]); };
  if (byte(0) & 0x70) return broken("set bits of an extension");  // 5.2
  if (byte(1) & 0x80) return broken("sent a masked frame");       // 5.1
  uint64_t size = byte(1) & 0x7f;
  size_t header = size == 126 ? 4 : size == 127 ? 10 : 2;
  if (bytes.size() < header) return 0;
  if (header > 2) {
    size = 0;
    for (size_t i = 2; i < header; ++i) size = size << 8 | byte(i);
    if (size < (header == 4 ? 126 : 65536)) return broken("wrote a length in more bytes than it takes");
  }
  uint8_t opcode = byte(0) & 0x0f;
  bool last = byte(0) & 0x80;
  if (opcode >= 8 && (size > 125 || !last)) return broken("sent a control frame that is long or in parts");
  if (size > kMaxMessage) return broken("sent a frame of more than 16 MiB");
  if (bytes.size() - header < size) return 0;
  auto taken = on_frame(opcode, last, bytes.substr(header, size));
  if (!taken) return std::unexpected(taken.error());
  return header + size;
}

Result<> WebSocketReader::on_frame(uint8_t opcode, bool last, std::string_view payload) {
  switch (opcode) {
    case kPing:
      owner_.on_ping(payload);
      return {};
    case kPong:
      return {};
    case kClose:
      closed_ = true;
      owner_.on_close();
      return {};
    case kContinuation:
      if (!in_message_) return broken("continued a message that it did not begin");
      break;
    case kBinary:
      if (in_message_) return broken("began a message within another");
      break;
    default:
      return broken("sent a frame that is neither binary nor control");
  }
  if (message_.size() + payload.size() > kMaxMessage) return broken("sent a message of more than 16 MiB");
  message_.append(payload);
  in_message_ = !last;
  if (!last) return {};
  std::string whole = std::exchange(message_, {});
  return owner_.on_message(whole);
}

Result<std::string> websocket_frame(WebSocketFrame kind, std::string_view payload) {
  std::string out(1, static_cast<char>(0x80 | static_cast<uint8_t>(kind)));
  size_t size = payload.size();
  if (size < 126) {
    out += static_cast<char>(0x80 | size);
  } else {
    int bytes = size < 65536 ? 2 : 8;
    out += static_cast<char>(0x80 | (bytes == 2 ? 126 : 127));
    for (int shift = (bytes - 1) * 8; shift >= 0; shift -= 8) out += static_cast<char>(size >> shift & 0xff);
  }
  std::array<uint8_t, 4> mask;
  if (RAND_bytes(mask.data(), mask.size()) != 1) return fail("random bytes: " + tls::take_openssl_error());
  out.append(mask.begin(), mask.end());
  for (size_t i = 0; i < size; ++i)
    out += static_cast<char>(static_cast<uint8_t>(payload[i]) ^ mask[i % mask.size()]);
  return out;
}

}  // namespace nodemesh::ctl

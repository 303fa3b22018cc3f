// IP addresses, socket addresses and prefixes in one 16-byte form, IPv4 as v4-mapped (RFC 4291 2.5.5.2), so
// that one code path serves both families. Values; any thread.
#pragma once

#include <sys/socket.h>

#include <array>
#include <compare>
#include <cstdint>
#include <cstring>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

namespace nodemesh {

struct Addr {
  std::array<uint8_t, 16> bytes{};

  auto operator<=>(const Addr&) const = default;
  bool is_v4() const;
  bool is_loopback() const;     // 127/8, ::1
  bool is_unspecified() const;  // 0.0.0.0, ::
  // "10.0.0.1" or "fd00::1"; never the v4-mapped spelling.
  std::string to_string() const;
  // Accepts both families without zone or brackets; a v4-mapped spelling gives the IPv4 address.
  static std::optional<Addr> parse(std::string_view text);
  static Addr v4(uint8_t a, uint8_t b, uint8_t c, uint8_t d);
  // Only the first `bits` of the 128-bit form, the others 0.
  Addr masked(unsigned bits) const;
};

struct SockAddr {
  Addr ip;
  uint16_t port = 0;

  auto operator<=>(const SockAddr&) const = default;
  // "10.0.0.1:80" or "[fd00::1]:80".
  std::string to_string() const;
  static std::optional<SockAddr> parse(std::string_view text);
  // Fills `out` for a socket of `family` (AF_INET6 takes both, v4-mapped; AF_INET only IPv4) and returns its
  // length.
  socklen_t to_native(sockaddr_storage& out, int family = AF_INET6) const;
  static SockAddr from_native(const sockaddr_storage& native);
};

struct Cidr {
  Addr network;
  uint8_t bits = 0;  // of the 128-bit form: 10.0.0.0/8 has 104

  auto operator<=>(const Cidr&) const = default;
  bool contains(const Addr& addr) const;
  std::string to_string() const;
  // "10.0.0.0/8", "fd00::/64" or a bare address. Host bits are cleared.
  static std::optional<Cidr> parse(std::string_view text);
};

// noexcept, so that hash tables do not keep each hash.
struct AddrHash {
  size_t operator()(const Addr& addr) const noexcept {
    uint64_t high, low;
    std::memcpy(&high, addr.bytes.data(), 8);
    std::memcpy(&low, addr.bytes.data() + 8, 8);
    uint64_t mixed = (high ^ (low * 0x9E3779B97F4A7C15ull));
    return mixed ^ (mixed >> 29);
  }
  size_t operator()(const SockAddr& addr) const noexcept {
    return (*this)(addr.ip) * 0xBF58476D1CE4E5B9ull + addr.port * 0x9E3779B97F4A7C15ull;
  }
};

}  // namespace nodemesh

template <>
struct std::hash<nodemesh::Addr> : nodemesh::AddrHash {};
template <>
struct std::hash<nodemesh::SockAddr> : nodemesh::AddrHash {};

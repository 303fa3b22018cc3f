#include "base/addr.h"

#include <arpa/inet.h>
#include <netinet/in.h>

#include <charconv>

namespace nodemesh {
namespace {

constexpr std::array<uint8_t, 12> kV4Prefix = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};

std::optional<unsigned> parse_number(std::string_view text, unsigned max) {
  unsigned value = 0;
  auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size() || value > max) return std::nullopt;
  return value;
}

}  // namespace

bool Addr::is_v4() const {
  return std::memcmp(bytes.data(), kV4Prefix.data(), kV4Prefix.size()) == 0;
}

bool Addr::is_loopback() const {
  if (is_v4()) return bytes[12] == 127;
  static constexpr Addr kLoopback{{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1}};
  return *this == kLoopback;
}

bool Addr::is_unspecified() const {
  return *this == Addr{} || *this == v4(0, 0, 0, 0);
}

Addr Addr::v4(uint8_t a, uint8_t b, uint8_t c, uint8_t d) {
  return Addr{{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d}};
}

std::string Addr::to_string() const {
  char text[INET6_ADDRSTRLEN];
  if (is_v4()) {
    inet_ntop(AF_INET, bytes.data() + 12, text, sizeof text);
  } else {
    inet_ntop(AF_INET6, bytes.data(), text, sizeof text);
  }
  return text;
}

std::optional<Addr> Addr::parse(std::string_view text) {
  char copy[INET6_ADDRSTRLEN];
  if (text.empty() || text.size() >= sizeof copy || text.find('\0') != text.npos) return std::nullopt;
  std::memcpy(copy, text.data(), text.size());
  copy[text.size()] = 0;
  Addr addr;
  if (inet_pton(AF_INET, copy, addr.bytes.data() + 12) == 1) {
    std::memcpy(addr.bytes.data(), kV4Prefix.data(), kV4Prefix.size());
    return addr;
  }
  if (inet_pton(AF_INET6, copy, addr.bytes.data()) == 1) return addr;
  return std::nullopt;
}

std::string SockAddr::to_string() const {
  std::string host = ip.is_v4() ? ip.to_string() : "[" + ip.to_string() + "]";
  return host + ":" + std::to_string(port);
}

std::optional<SockAddr> SockAddr::parse(std::string_view text) {
  auto colon = text.rfind(':');
  if (colon == text.npos) return std::nullopt;
  auto host = text.substr(0, colon);
  bool bracketed = host.size() > 2 && host.front() == '[' && host.back() == ']';
  if (bracketed) host = host.substr(1, host.size() - 2);
  if (bracketed != (host.find(':') != host.npos)) return std::nullopt;
  auto port = parse_number(text.substr(colon + 1), 65535);
  auto ip = Addr::parse(host);
  if (!port || !ip) return std::nullopt;
  return SockAddr{*ip, static_cast<uint16_t>(*port)};
}

socklen_t SockAddr::to_native(sockaddr_storage& out, int family) const {
  std::memset(&out, 0, sizeof(sockaddr_in6));
  if (family == AF_INET) {
    auto& in = reinterpret_cast<sockaddr_in&>(out);
    in.sin_family = AF_INET;
    in.sin_port = htons(port);
    std::memcpy(&in.sin_addr, ip.bytes.data() + 12, 4);
    return sizeof in;
  }
  auto& in6 = reinterpret_cast<sockaddr_in6&>(out);
  in6.sin6_family = AF_INET6;
  in6.sin6_port = htons(port);
  std::memcpy(&in6.sin6_addr, ip.bytes.data(), 16);
  return sizeof in6;
}

SockAddr SockAddr::from_native(const sockaddr_storage& native) {
  SockAddr addr;
  if (native.ss_family == AF_INET) {
    auto& in = reinterpret_cast<const sockaddr_in&>(native);
    std::memcpy(addr.ip.bytes.data(), kV4Prefix.data(), kV4Prefix.size());
    std::memcpy(addr.ip.bytes.data() + 12, &in.sin_addr, 4);
    addr.port = ntohs(in.sin_port);
  } else if (native.ss_family == AF_INET6) {
    auto& in6 = reinterpret_cast<const sockaddr_in6&>(native);
    std::memcpy(addr.ip.bytes.data(), &in6.sin6_addr, 16);
    addr.port = ntohs(in6.sin6_port);
  }
  return addr;
}

Addr Addr::masked(unsigned bits) const {
  Addr out = *this;
  for (unsigned bit = bits; bit < 128; ++bit)
    out.bytes[bit / 8] &= static_cast<uint8_t>(~(0x80 >> (bit % 8)));
  return out;
}

bool Cidr::contains(const Addr& addr) const {
  // The v4-mapped form lies inside short IPv6 prefixes, ::/0 first; as prefixes of people they hold IPv6
  // alone.
  if (bits < 96 && addr.is_v4()) return false;
  unsigned whole = bits / 8, rest = bits % 8;
  if (std::memcmp(network.bytes.data(), addr.bytes.data(), whole) != 0) return false;
  if (rest == 0) return true;
  auto mask = static_cast<uint8_t>(0xff << (8 - rest));
  return (network.bytes[whole] & mask) == (addr.bytes[whole] & mask);
}

std::string Cidr::to_string() const {
  return network.to_string() + "/" + std::to_string(network.is_v4() && bits >= 96 ? bits - 96 : bits);
}

std::optional<Cidr> Cidr::parse(std::string_view text) {
  auto slash = text.find('/');
  auto addr = Addr::parse(text.substr(0, slash));
  if (!addr) return std::nullopt;
  unsigned offset = addr->is_v4() ? 96 : 0;
  unsigned bits = 128 - offset;
  if (slash != text.npos) {
    auto parsed = parse_number(text.substr(slash + 1), bits);
    if (!parsed) return std::nullopt;
    bits = *parsed;
  }
  return Cidr{addr->masked(bits + offset), static_cast<uint8_t>(bits + offset)};
}

}  // namespace nodemesh

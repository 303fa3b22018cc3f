// Addresses, socket addresses and prefixes: what is accepted reads back from its own spelling as the same
// value.
#include "base/addr.h"

#include <cstdint>
#include <cstdlib>
#include <string_view>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace nodemesh;
  std::string_view text(reinterpret_cast<const char*>(data), size);
  auto addr = Addr::parse(text);
  if (addr && Addr::parse(addr->to_string()) != addr) std::abort();
  if (auto socket = SockAddr::parse(text)) {
    if (SockAddr::parse(socket->to_string()) != socket) std::abort();
    sockaddr_storage native{};
    socket->to_native(native);
    if (SockAddr::from_native(native) != *socket) std::abort();
  }
  if (auto cidr = Cidr::parse(text)) {
    if (Cidr::parse(cidr->to_string()) != cidr || !cidr->contains(cidr->network)) std::abort();
    if (addr && *addr != cidr->network) std::abort();  // a bare address is a prefix of itself
  }
  return 0;
}

// SPIFFE ids: whatever is accepted must come out as it went in.
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "tls/spiffe.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::string_view text(reinterpret_cast<const char*>(data), size);
  auto id = nodemesh::tls::SpiffeId::parse(text);
  if (id && id->uri() != text) std::abort();
  return 0;
}

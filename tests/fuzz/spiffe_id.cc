// Fuzzes the SPIFFE id parser: what it accepts must be exactly what spiffe_id() builds from its parts.
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "model/authorize.h"
#include "model/workload.h"

using namespace nodemesh::model;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::string_view text(reinterpret_cast<const char*>(data), size);
  auto id = PeerIdentity::parse(text);
  if (id && spiffe_id(id->trust_domain, id->ns, id->service_account) != text) std::abort();
  auto match = StringMatch::parse(text);
  if (match.kind == StringMatch::Kind::exact && !match.matches(text)) std::abort();
  if (match.to_string() != text) std::abort();
  return 0;
}

// The authority of a CONNECT: accepted only as one spelling of the pod's own address and a port that is not
// ours.
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "bpf/abi.h"
#include "proxy/decide.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace nodemesh;
  std::string_view text(reinterpret_cast<const char*>(data), size);
  for (const auto& local : {Addr::v4(10, 0, 0, 1), *Addr::parse("fd00::1")}) {
    auto target = proxy::parse_connect_authority(text, local);
    if (!target) {
      if (target.error().reason == Reason::NONE || target.error().message.empty()) std::abort();
      continue;
    }
    if (target->ip != local || target->port == 0 || target->port == NM_HBONE_PORT) std::abort();
    if (SockAddr::parse(target->to_string()) != *target) std::abort();
  }
  return 0;
}

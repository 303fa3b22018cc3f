// The channel between warden and proxy, both directions: whatever the bytes and however many descriptors came
// with them, decoding ends, and what it accepts is within the limits its readers rely on.
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "warden/channel.h"
#include "warden/message.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace nodemesh::warden;
  if (size < 1) return 0;
  size_t descriptors = data[0];
  auto bytes = std::as_bytes(std::span(data + 1, size - 1));
  uint32_t sequence = 0;
  if (bytes.size() >= sizeof(Header))
    std::memcpy(&sequence, bytes.data() + offsetof(Header, sequence), sizeof sequence);
  if (auto message = decode_from_proxy(bytes, descriptors, sequence)) {
    if (auto* want = std::get_if<WantSockets>(&*message); want && want->count > kMaxSocketBatch) std::abort();
    if (auto* hello = std::get_if<Hello>(&*message); hello && hello->workers > kMaxWorkers) std::abort();
  }
  if (auto message = decode_from_warden(bytes, descriptors, sequence)) {
    if (auto* add = std::get_if<PodAdd>(&*message)) {
      if (from_record(add->pod).addresses.size() > NM_POD_ADDRESSES || descriptors > kMaxDescriptors)
        std::abort();
    }
    if (auto* sockets = std::get_if<Sockets>(&*message); sockets && sockets->count != descriptors)
      std::abort();
  }
  return 0;
}

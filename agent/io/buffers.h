// A worker's large scratch buffers, shared by all its connections within a turn, so that an idle connection
// holds no buffer at all. Nothing may keep a pointer into them across turns. Worker thread only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

namespace nodemesh::io {

struct Buffers {
  static constexpr size_t kCipher = 256 * 1024;  // what one recv on a tunnel may take
  static constexpr size_t kPlain = 288 * 1024;   // what one recv decrypts to, and a record begun before it
  static constexpr size_t kGather = 256 * 1024;  // frames waiting to be sealed into TLS records in this turn
  static constexpr size_t kSealed =
      288 * 1024;  // the records of one gather: 16 of at most 16 KiB + 256 B, and slack

  std::unique_ptr<uint8_t[]> cipher{new uint8_t[kCipher]};
  std::unique_ptr<uint8_t[]> plain{new uint8_t[kPlain]};
  std::unique_ptr<uint8_t[]> gather{new uint8_t[kGather]};
  std::unique_ptr<uint8_t[]> sealed{new uint8_t[kSealed]};
};

}  // namespace nodemesh::io

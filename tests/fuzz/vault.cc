// The vault's reader. The checksum is made good first, or nothing behind it would ever be reached.
#include <cstdint>
#include <string>

#include "identity/vault.h"
#include "tls/openssl.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::string bytes = "nodemesh-vault-1" + std::string(reinterpret_cast<const char*>(data), size);
  auto digest = nodemesh::tls::sha256(bytes);
  bytes.append(reinterpret_cast<const char*>(digest.data()), digest.size());
  (void)nodemesh::identity::decode_vault(bytes);
  (void)nodemesh::identity::decode_vault({reinterpret_cast<const char*>(data), size});
  return 0;
}

// A peer's leaf as DER, up to the verdict on it; and PEM of keys, chains and requests.
#include <cstdint>
#include <string_view>

#include "identity/csr.h"
#include "tls/credential.h"
#include "tls/verify.h"

using namespace nodemesh;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static Clock clock;
  static tls::Verifier verifier(clock, {"cluster.local"});
  const unsigned char* der = data;
  if (tls::X509Ptr leaf{d2i_X509(nullptr, &der, static_cast<long>(size))}) {
    (void)tls::identity_in(leaf.get());
    (void)verifier.verify(leaf.get(), nullptr, tls::PeerRole::client);
  }
  std::string_view text(reinterpret_cast<const char*>(data), size);
  (void)tls::parse_certificates(text);
  (void)identity::key_of_csr(text);
  tls::take_openssl_error();
  return 0;
}

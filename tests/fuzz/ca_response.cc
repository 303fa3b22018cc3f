// What a certificate authority may answer: gRPC framing, then the protobuf, then the certificates in it.
#include <cstdint>
#include <string_view>

#include "http/grpc_client.h"
#include "identity/ca_client.h"
#include "tls/openssl.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace nodemesh;
  static const std::string key = tls::to_pem(tls::make_p256_key()->get());
  std::string_view bytes(reinterpret_cast<const char*>(data), size);
  (void)http::decode_grpc_text(bytes);
  if (auto message = http::parse_grpc_message(bytes)) {
    (void)identity::read_response(*message, key, "spiffe://cluster.local/ns/default/sa/web");
  }
  (void)identity::read_response(bytes, key, "spiffe://cluster.local/ns/default/sa/web");
  tls::take_openssl_error();
  return 0;
}

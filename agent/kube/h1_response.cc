#include "kube/h1_response.h"

namespace nodemesh::kube {

Result<size_t> H1Response::feed(std::string_view bytes) {
  if (!bytes.empty()) begun_ = true;
  auto used = response_.feed({reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size()});
  if (!used) return fail(used.error().error.reason, "HTTP/1.1: " + used.error().error.message);
  if (!refused_.empty()) return fail(Reason::HTTP_MALFORMED, "HTTP/1.1: " + std::string(refused_));
  return *used;
}

void H1Response::on_head(http::HeaderBlock& head, bool) {
  if (response_.tunnel()) {
    refused_ = "the server switched protocols without being asked";
  } else if (response_.ends_with_connection()) {
    refused_ = "the response says neither its length nor that it is chunked";
  } else if (head.status >= 200) {
    reader_.on_head(head);
  }
}

void H1Response::on_body(std::span<const uint8_t> bytes) {
  if (refused_.empty()) reader_.on_body({reinterpret_cast<const char*>(bytes.data()), bytes.size()});
}

}  // namespace nodemesh::kube

// Unary gRPC calls over one HTTP/2 connection, plain or over TLS (client_socket.h), on a reactor (the control
// thread's). Dials when the first call needs it, again after a loss; calls that were on a lost connection
// fail, the caller decides about retries. A call that ends at its deadline without a byte from the server
// takes the connection with it: the peer may be gone without a word. Replies are hostile input: bounded to 1
// MiB and 64 KiB of headers and trailers.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/reason.h"
#include "http/client_socket.h"
#include "io/reactor.h"

namespace nodemesh::http {

// The codes of gRPC that we distinguish (grpc/statuscodes); others pass through as numbers.
enum class GrpcCode : int {
  ok = 0,
  cancelled = 1,
  unknown = 2,
  invalid_argument = 3,
  deadline_exceeded = 4,
  permission_denied = 7,
  resource_exhausted = 8,
  unimplemented = 12,
  internal = 13,
  unavailable = 14,
  unauthenticated = 16,
};

struct GrpcReply {
  GrpcCode code = GrpcCode::unavailable;
  std::string error;    // grpc-message decoded, or our own words; peer-supplied bytes: escape in logs
  std::string message;  // the protobuf, when code is ok
};

// One length-prefixed message out of `body` (gRPC over HTTP/2, "Length-Prefixed-Message"): exactly one,
// uncompressed.
Result<std::string_view> parse_grpc_message(std::string_view body);
// Percent-decoding of grpc-message; what does not decode stays as it is.
std::string decode_grpc_text(std::string_view text);

class GrpcClient {
 public:
  using Target = ClientTarget;
  struct Call {
    std::string path;                                           // "/package.Service/Method"
    std::vector<std::pair<std::string, std::string>> metadata;  // lower-case names
    std::string message;
    milliseconds timeout{10'000};  // for dialling and answer together
  };
  using Done = std::move_only_function<void(GrpcReply)>;

  // `reactor` outlives the client.
  GrpcClient(io::Reactor& reactor, Target target);
  // Open calls end with code cancelled; their callbacks run within the destructor.
  ~GrpcClient();
  GrpcClient(const GrpcClient&) = delete;
  GrpcClient& operator=(const GrpcClient&) = delete;

  // `done` runs exactly once on the reactor's thread, never before call() returns.
  void call(Call call, Done done);
  bool connected() const;

 private:
  class Connection;
  std::unique_ptr<Connection> connection_;
};

}  // namespace nodemesh::http

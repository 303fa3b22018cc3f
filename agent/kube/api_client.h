// Requests to one Kubernetes API server over TLS, on a reactor (the control thread's). HTTP/2 where the
// server has it, one connection for everything; else HTTP/1.1, one connection for each request under way.
// Dials when a request needs it; a call that was on a lost connection ends with an error, the caller decides
// about retries. A 401 makes it read the token anew and ask once more. Everything that comes from the server
// is bounded: 60 KiB of headers, ApiRequest::max_body, no compression.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "base/clock.h"
#include "base/reason.h"
#include "io/reactor.h"
#include "kube/access.h"

namespace nodemesh::kube {

enum class Verb : uint8_t { get, post, put, patch, remove };
std::string_view verb_name(Verb verb);  // "GET" … "DELETE"

struct ApiRequest {
  Verb verb = Verb::get;
  std::string path;  // "/api/v1/nodes?limit=500", already percent-encoded
  std::string body;
  std::string content_type = "application/json";  // PATCH: "application/merge-patch+json", …
  std::string accept = "application/json";
  // For dialling and the whole answer; of a stream, for dialling and the answer's head.
  milliseconds timeout{30'000};
  // Of a stream, from its head to its end: a server that never ends it is taken for dead. 0: none.
  milliseconds stream_limit{0};
  size_t max_body = 64 << 20;  // not of a stream
};

struct ApiHead {
  int status = 0;                      // HTTP
  std::optional<seconds> retry_after;  // at most an hour
  bool ok() const { return status >= 200 && status < 300; }
};

struct ApiAnswer : ApiHead {
  std::string body;
};

// What the server says of a failure: the message of a metav1.Status in `body`, else the HTTP status. May hold
// the server's bytes: escape it in logs.
std::string failure_text(int status, std::string_view body);
// `value` as one component of a path or as a value in a query (RFC 3986 2.1).
std::string percent_encode(std::string_view value);

// The reader of a streamed answer. Calls come on the reactor's thread; within one it may start and cancel
// calls, but not destroy the client.
class ApiStream {
 public:
  virtual void on_head(const ApiHead& head) = 0;
  virtual void on_bytes(std::string_view bytes) = 0;
  // The answer is complete, or why it is not. No call follows.
  virtual void on_end(Result<> how) = 0;

 protected:
  ~ApiStream() = default;
};

struct ApiTimes {
  milliseconds connect{10'000};        // TCP and TLS, each address
  milliseconds ping_interval{30'000};  // HTTP/2: without an answer in `ping_timeout` the connection is lost
  milliseconds ping_timeout{15'000};
  milliseconds idle{90'000};  // HTTP/1.1: how long a connection waits for the next request
};

class ApiClient {
 public:
  using Done = std::move_only_function<void(Result<ApiAnswer>)>;
  using CallId = uint64_t;

  // Both outlive the client.
  ApiClient(io::Reactor& reactor, const Clock& clock, Access access, ApiTimes times = {});
  // Calls under way end without a word.
  ~ApiClient();
  ApiClient(const ApiClient&) = delete;
  ApiClient& operator=(const ApiClient&) = delete;

  // `done` runs once, never before this returns, with any HTTP status; an Error says that there was no
  // answer. It may not destroy the client.
  CallId request(ApiRequest request, Done done);
  // `reader` is called until its on_end, or until cancel().
  CallId stream(ApiRequest request, ApiStream& reader);
  // No call of its callback follows. Unknown and finished ids are ignored.
  void cancel(CallId id);

  const Access& access() const { return access_; }
  // When the connection of this call last brought bytes, PING answers among them; empty before it has one.
  std::optional<Monotonic::time_point> last_contact(CallId id) const;
  // For tests and status: "h2", "http/1.1" or "" while nothing is connected.
  std::string_view protocol() const;

 private:
  class Engine;
  const Access access_;
  std::unique_ptr<Engine> engine_;
};

}  // namespace nodemesh::kube

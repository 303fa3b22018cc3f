// What the admin ports answer: a request in, a response out, now or later. No I/O; admin thread.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "admin/http_request.h"
#include "admin/sources.h"
#include "base/reason.h"
#include "io/reactor.h"

namespace nodemesh::admin {

// Which port a request came to decides what it may ask for. `process`: metrics and health on one port, by the
// paths that Kubernetes' own components have (/healthz, /readyz).
enum class Surface { metrics, health, admin, process };

struct Response {
  int status = 200;
  std::string content_type = "text/plain; charset=utf-8";
  std::string body;
};

using Respond = std::move_only_function<void(Response)>;

class Routes {
 public:
  // `reactor` times the return of a log level that was set for a while.
  Routes(Sources sources, io::Reactor& reactor);
  ~Routes();
  // Calls `respond` once, perhaps later and from another thread.
  void handle(Surface surface, const Request& request, Respond respond);

 private:
  Response ready() const;
  Response version() const;
  Response index() const;
  Response logging(const Request& request);
  Response set_level(const Request& request);
  void rows(const Source& source, std::string kind, Respond respond);

  struct Revert;
  Sources sources_;
  io::Reactor& reactor_;
  std::vector<std::unique_ptr<Revert>> reverts_;
};

// The bytes on the wire. With `head` the body is only announced.
std::string serialise(const Response& response, bool keep_alive, bool head);

}  // namespace nodemesh::admin

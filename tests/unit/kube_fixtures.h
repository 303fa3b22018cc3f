// What the tests of the API client share: a reactor that turns until something holds, access to a scripted
// server, and the JSON that API servers write.
#pragma once

#include <doctest/doctest.h>

#include <fcntl.h>
#include <fmt/format.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fstream>
#include <memory>
#include <string>

#include "kube/api_client.h"
#include "kube/watch.h"
#include "support/api_server.h"

namespace nodemesh::test {

struct ApiFixture {
  io::Reactor reactor;
  Clock clock;
  TestCa ca{"kubernetes ca", KeyKind::p256};
  std::unique_ptr<ApiServer> server;
  std::unique_ptr<kube::ApiClient> client;

  template <class Done>
  void turn_until(Done done, int line = __builtin_LINE()) {
    auto until = Monotonic::now() + seconds(10);
    while (!done() && Monotonic::now() < until) reactor.run_once(milliseconds(20));
    INFO("waited for at line ", line);
    REQUIRE(done());
  }

  kube::Access access() const {
    kube::Access out{.host = "127.0.0.1", .port = server->port(), .server_name = "kubernetes"};
    out.roots.text = ca.root_pem();
    out.token.text = "the-token";
    out.origin = "the test";
    return out;
  }
  void serve(bool h2) { serve(ApiServer::Options{.h2 = h2}); }
  void serve(ApiServer::Options options) {
    server = std::make_unique<ApiServer>(reactor, ca, std::move(options));
  }
  void connect(kube::ApiTimes times = {}) { connect(access(), times); }
  void connect(kube::Access with, kube::ApiTimes times = {}) {
    client = std::make_unique<kube::ApiClient>(reactor, clock, std::move(with), times);
  }

  Result<kube::ApiAnswer> ask(kube::ApiRequest request) {
    std::optional<Result<kube::ApiAnswer>> got;
    client->request(std::move(request), [&](Result<kube::ApiAnswer> answer) { got = std::move(answer); });
    turn_until([&] { return got.has_value(); });
    return std::move(*got);
  }
  Result<kube::ApiAnswer> get(std::string path) { return ask({.path = std::move(path)}); }
};

inline std::string object_json(const std::string& name, int version, const std::string& uid,
                               const std::string& rest = "") {
  return fmt::format(R"({{"kind":"Service","apiVersion":"v1","metadata":{{"name":"{}","namespace":"shop",)"
                     R"("uid":"{}","resourceVersion":"{}"}}{}}})",
                     name, uid, version, rest);
}
inline std::string object_json(const std::string& name, int version) {
  return object_json(name, version, "uid-" + name);
}
inline std::string event_json(const std::string& type, const std::string& object) {
  return fmt::format(R"({{"type":"{}","object":{}}})", type, object) + "\n";
}
inline std::string bookmark_json(int version, bool initial_end = false) {
  return event_json(
      "BOOKMARK",
      fmt::format(R"({{"kind":"Service","apiVersion":"v1","metadata":{{"resourceVersion":"{}"{}}}}})",
                  version, initial_end ? R"(,"annotations":{"k8s.io/initial-events-end":"true"})" : ""));
}
inline std::string list_json(const std::vector<std::string>& objects, int version,
                             const std::string& next = "") {
  return fmt::format(
      R"({{"kind":"ServiceList","apiVersion":"v1","metadata":{{"resourceVersion":"{}","continue":"{}"}},"items":[{}]}})",
      version, next, fmt::join(objects, ","));
}
inline std::string status_json(int code, const std::string& reason, const std::string& message) {
  return fmt::format(
      R"({{"kind":"Status","apiVersion":"v1","status":"Failure","message":"{}","reason":"{}","code":{}}})",
      message, reason, code);
}

// A directory that goes with the test.
struct TempDir {
  TempDir() {
    char name[] = "/tmp/nm-kube-XXXXXX";
    path = ::mkdtemp(name);
  }
  ~TempDir() { (void)std::system(("rm -rf " + path).c_str()); }
  std::string write(const std::string& name, const std::string& text) const {
    std::ofstream(path + "/" + name) << text;
    return path + "/" + name;
  }
  std::string path;
};

}  // namespace nodemesh::test

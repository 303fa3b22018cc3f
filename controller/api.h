// What the controller asks of the API server, one request at a time, and how it reads and writes JSON there.
// A seam with two sides: the API client in production, a scripted server in tests. Main thread only.
#pragma once

#include <functional>
#include <initializer_list>
#include <string>
#include <string_view>

#include <nlohmann/json.hpp>

#include "kube/api_client.h"

namespace nodemesh::controller {

using Json = nlohmann::json;

struct ApiReply {
  int status = 0;     // HTTP; 0: no answer
  std::string body;   // JSON when ok()
  std::string error;  // what went wrong, for people: the server's words, so escape them
  bool ok() const { return status >= 200 && status < 300; }
  bool not_found() const { return status == 404; }
  bool conflict() const { return status == 409; }
};

class Api {
 public:
  using Done = std::move_only_function<void(ApiReply)>;
  virtual ~Api() = default;
  // `done` runs once, never before this returns, and not at all when the API is gone by then. `body` empty:
  // none.
  virtual void call(kube::Verb verb, std::string path, std::string body, Done done) = 0;
  // PATCH. A merge patch (RFC 7396) replaces lists; a strategic one, which only Kubernetes' own kinds have,
  // merges them by their key: a condition by its type.
  enum class Patch : uint8_t { merge, strategic };
  virtual void patch(Patch kind, std::string path, std::string body, Done done) = 0;
};

class ClientApi final : public Api {
 public:
  explicit ClientApi(kube::ApiClient& client) : client_(client) {}  // outlives it
  void call(kube::Verb verb, std::string path, std::string body, Done done) override;
  void patch(Patch kind, std::string path, std::string body, Done done) override;

 private:
  void send(kube::ApiRequest request, Done done);
  kube::ApiClient& client_;
};

// An object, or null where `text` is none.
Json parse_object(std::string_view text);
// The value below `path`, or null. Never throws, whatever the types are.
const Json* find(const Json& from, std::initializer_list<std::string_view> path);
// The string there; empty when there is none.
std::string text_at(const Json& from, std::initializer_list<std::string_view> path);
// At most `limit` bytes of a text, cut between two characters.
std::string utf8_prefix(std::string_view text, size_t limit);
// Replaces bytes that are not UTF-8 instead of throwing.
std::string dump(const Json& value);

}  // namespace nodemesh::controller

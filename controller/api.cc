#include "controller/api.h"

#include <fmt/format.h>

namespace nodemesh::controller {

void ClientApi::call(kube::Verb verb, std::string path, std::string body, Done done) {
  send({.verb = verb, .path = std::move(path), .body = std::move(body)}, std::move(done));
}

void ClientApi::patch(Patch kind, std::string path, std::string body, Done done) {
  kube::ApiRequest request{.verb = kube::Verb::patch, .path = std::move(path), .body = std::move(body)};
  request.content_type =
      kind == Patch::strategic ? "application/strategic-merge-patch+json" : "application/merge-patch+json";
  send(std::move(request), std::move(done));
}

void ClientApi::send(kube::ApiRequest request, Done done) {
  std::string what = fmt::format("{} {}", kube::verb_name(request.verb), request.path);
  request.timeout = milliseconds(10'000);
  client_.request(std::move(request),
                  [what = std::move(what), done = std::move(done)](Result<kube::ApiAnswer> answer) mutable {
                    if (!answer) return done({0, {}, what + ": " + answer.error().message});
                    ApiReply reply{answer->status, std::move(answer->body), {}};
                    if (!reply.ok()) {
                      reply.error = fmt::format("{}: {}", what, kube::failure_text(reply.status, reply.body));
                    }
                    done(std::move(reply));
                  });
}

Json parse_object(std::string_view text) {
  Json out = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  return out.is_object() ? out : Json();
}

const Json* find(const Json& from, std::initializer_list<std::string_view> path) {
  const Json* at = &from;
  for (std::string_view key : path) {
    if (!at->is_object()) return nullptr;
    auto found = at->find(key);
    if (found == at->end()) return nullptr;
    at = &*found;
  }
  return at;
}

std::string text_at(const Json& from, std::initializer_list<std::string_view> path) {
  const Json* at = find(from, path);
  return at != nullptr && at->is_string() ? at->get<std::string>() : std::string();
}

std::string utf8_prefix(std::string_view text, size_t limit) {
  if (text.size() <= limit) return std::string(text);
  while (limit > 0 && (static_cast<unsigned char>(text[limit]) & 0xc0) == 0x80) --limit;
  return std::string(text.substr(0, limit));
}

std::string dump(const Json& value) {
  return value.dump(-1, ' ', false, Json::error_handler_t::replace);
}

}  // namespace nodemesh::controller

#include "ctl/scrub.h"

#include <algorithm>
#include <array>
#include <cctype>

namespace nodemesh::ctl {
namespace {

constexpr const char* kRemoved = "[removed]";

bool is_base64url(char c) {
  return std::isalnum(static_cast<unsigned char>(c)) || c == '-' || c == '_';
}
bool is_base64(char c) {
  return std::isalnum(static_cast<unsigned char>(c)) || c == '+' || c == '/' || c == '=';
}
bool ends_value(char c) {
  return std::isspace(static_cast<unsigned char>(c)) || c == '"' || c == '\'' || c == '\\' || c == ',' ||
         c == '&' || c == ';';
}
template <class Is>
size_t run_of(std::string_view text, Is is) {
  return static_cast<size_t>(std::ranges::find_if_not(text, is) - text.begin());
}

bool names_a_secret(std::string_view name) {
  static constexpr std::array<std::string_view, 9> kEnds = {
      "token", "password", "passwd", "secret", "apikey", "api_key", "api-key", "access_key", "credentials"};
  return std::ranges::any_of(kEnds, [&](std::string_view end) {
    return name.size() >= end.size() && std::ranges::equal(name.substr(name.size() - end.size()), end, {},
                                                           [](unsigned char c) { return std::tolower(c); });
  });
}

// The length of the secret that `text` begins with; 0: none.
size_t private_key(std::string_view text) {
  if (!text.starts_with("-----BEGIN ")) return 0;
  size_t label = text.find("-----", 11);
  if (label == text.npos || label > 64 || !text.substr(0, label).ends_with("PRIVATE KEY")) return 0;
  size_t end = text.find("PRIVATE KEY-----", label + 5);
  return end == text.npos ? text.size() : end + 16;  // one that was cut goes to the end
}

size_t base64_pem(std::string_view text) {
  return text.starts_with("LS0tLS1CRUdJTi") ? run_of(text, is_base64) : 0;  // "-----BEGIN"
}

size_t jwt(std::string_view text) {
  if (!text.starts_with("eyJ")) return 0;
  size_t head = run_of(text, is_base64url);
  if (head < 10 || head >= text.size() || text[head] != '.') return 0;
  size_t claims = run_of(text.substr(head + 1), is_base64url);
  if (claims < 10) return 0;
  size_t size = head + 1 + claims;
  return size < text.size() && text[size] == '.' ? size + 1 + run_of(text.substr(size + 1), is_base64url)
                                                 : size;
}

// After "Bearer " (any case) at `text`'s begin.
size_t bearer(std::string_view text) {
  static constexpr std::string_view kBearer = "bearer ";
  bool same =
      text.size() > kBearer.size() && std::ranges::equal(text.substr(0, kBearer.size()), kBearer, {},
                                                         [](unsigned char c) { return std::tolower(c); });
  size_t value = same ? run_of(text.substr(kBearer.size()), [](char c) { return !ends_value(c); }) : 0;
  return value >= 16 ? kBearer.size() + value : 0;  // shorter: a word about it
}

// At an '=': the value of a name that ends like a secret's.
size_t assigned(std::string_view before, std::string_view text) {
  if (text.front() != '=' || !names_a_secret(before)) return 0;
  size_t quote = text.size() > 1 && (text[1] == '"' || text[1] == '\'') ? 1 : 0;
  size_t value = run_of(text.substr(1 + quote), [](char c) { return !ends_value(c); });
  return value == 0 ? 0 : 1 + quote + value;
}

void scrub_annotations(nlohmann::json& metadata) {
  metadata.erase("managedFields");
  auto annotations = metadata.find("annotations");
  if (annotations != metadata.end() && annotations->is_object())
    annotations->erase("kubectl.kubernetes.io/last-applied-configuration");
}

void copy(const nlohmann::json& from, nlohmann::json& to, std::initializer_list<const char*> keys) {
  if (!from.is_object()) return;
  for (const char* key : keys) {
    if (auto found = from.find(key); found != from.end()) to[key] = *found;
  }
}

const nlohmann::json& member(const nlohmann::json& object, const char* key) {
  static const nlohmann::json kNull;
  if (!object.is_object()) return kNull;
  auto found = object.find(key);
  return found == object.end() ? kNull : *found;
}

}  // namespace

std::string scrub(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t at = 0; at < text.size();) {
    auto rest = text.substr(at);
    size_t secret = 0;
    switch (rest.front()) {
      case '-':
        secret = private_key(rest);
        break;
      case 'L':
        secret = base64_pem(rest);
        break;
      case 'e':
        secret = jwt(rest);
        break;
      case 'b':
      case 'B':
        secret = bearer(rest);
        break;
      case '=':
        secret = assigned(text.substr(at > 32 ? at - 32 : 0, std::min<size_t>(at, 32)), rest);
        break;
      default:
        break;
    }
    if (secret == 0) {
      out += rest.front();
      ++at;
      continue;
    }
    if (rest.front() == '=') out += '=';
    out += kRemoved;
    at += secret;
  }
  return out;
}

void scrub_object(nlohmann::json& object) {
  if (object.is_string()) {
    object = scrub(object.get_ref<const std::string&>());
  } else if (object.is_array()) {
    for (auto& item : object) scrub_object(item);
  } else if (object.is_object()) {
    if (member(object, "kind") == "Secret") {
      for (const char* key : {"data", "stringData"}) object.erase(key);
    }
    for (auto& [key, value] : object.items()) {
      if (key == "metadata" && value.is_object()) scrub_annotations(value);
      if (key == "env" && value.is_array()) {
        for (auto& variable : value) {
          if (variable.is_object() && variable.contains("value")) variable["value"] = kRemoved;
        }
      }
      if (value.is_string() && names_a_secret(key)) value = kRemoved;
      scrub_object(value);
    }
  }
}

nlohmann::json pod_outline(const nlohmann::json& pod) {
  nlohmann::json out = {{"metadata", nlohmann::json::object()}, {"spec", nlohmann::json::object()}};
  const auto &spec = member(pod, "spec"), &metadata = member(pod, "metadata");
  copy(metadata, out["metadata"],
       {"name", "namespace", "uid", "labels", "creationTimestamp", "deletionTimestamp", "ownerReferences"});
  copy(spec, out["spec"], {"nodeName", "hostNetwork", "serviceAccountName", "runtimeClassName"});
  for (const char* list : {"initContainers", "containers"}) {
    const auto& containers = member(spec, list);
    if (!containers.is_array()) continue;
    for (const auto& container : containers) {
      nlohmann::json outline;
      copy(container, outline, {"name", "image", "ports", "livenessProbe", "readinessProbe", "startupProbe"});
      out["spec"][list].push_back(std::move(outline));
    }
  }
  copy(pod, out, {"status"});
  return out;
}

}  // namespace nodemesh::ctl

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

// The quote that `text` begins with, with the backslash before it inside another string; empty: none.
std::string_view quote_of(std::string_view text) {
  size_t size = text.starts_with('\\') ? 2 : 1;
  bool quoted = text.size() >= size && (text[size - 1] == '"' || text[size - 1] == '\'');
  return text.substr(0, quoted ? size : 0);
}

// At an '=', or the colon of a JSON member: the value of a name that ends like a secret's. What begins with a
// quote ends with one.
size_t assigned(std::string_view before, std::string_view text) {
  size_t at = 1;
  if (text.front() == ':') {
    if (!before.ends_with('"')) return 0;
    before.remove_suffix(before.ends_with("\\\"") ? 2 : 1);
    at += run_of(text.substr(1), [](char c) { return c == ' '; });
  }
  if (!names_a_secret(before)) return 0;
  auto quote = quote_of(text.substr(at));
  if (!quote.empty()) {
    size_t end = text.find(quote, at + quote.size());
    return end == at + quote.size() ? 0 : end == text.npos ? text.size() : end + quote.size();
  }
  size_t value = text.front() == '=' ? run_of(text.substr(at), [](char c) { return !ends_value(c); }) : 0;
  return value == 0 ? 0 : at + value;
}

// {"name": …, "value": …}, as headers and parameters are written.
bool names_a_secret_value(const nlohmann::json& object) {
  auto name = object.find("name");
  if (name == object.end() || !name->is_string()) return false;
  const auto& text = name->get_ref<const std::string&>();
  auto is = [&](std::string_view other) {
    return std::ranges::equal(text, other, {}, [](unsigned char c) { return std::tolower(c); });
  };
  return names_a_secret(text) || is("authorization") || is("proxy-authorization") || is("cookie");
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

// What kubelet asks, without headers and commands, where passwords stand.
nlohmann::json probe_outline(const nlohmann::json& probe) {
  nlohmann::json out = nlohmann::json::object();
  copy(probe, out,
       {"tcpSocket", "grpc", "initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold",
        "failureThreshold"});
  if (probe.contains("httpGet")) copy(probe["httpGet"], out["httpGet"], {"path", "port", "scheme", "host"});
  if (probe.contains("exec")) out["exec"] = kRemoved;
  return out;
}

// A container's termination message is what its application wrote last.
void forget_last_words(nlohmann::json& pod) {
  using Pointer = nlohmann::json::json_pointer;
  for (const char* list : {"/status/initContainerStatuses", "/status/containerStatuses"}) {
    if (!pod.contains(Pointer(list)) || !pod[Pointer(list)].is_array()) continue;
    for (auto& status : pod[Pointer(list)]) {
      for (const char* state : {"/state/terminated", "/lastState/terminated"}) {
        if (status.contains(Pointer(state)) && status[Pointer(state)].is_object())
          status[Pointer(state)].erase("message");
      }
    }
  }
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
      case ':':
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
    if (rest.front() == '=' || rest.front() == ':') out += rest.front();
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
    if (object.contains("value") && names_a_secret_value(object)) object["value"] = kRemoved;
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
      copy(container, outline, {"name", "image", "ports"});
      for (const char* probe : {"livenessProbe", "readinessProbe", "startupProbe"}) {
        if (member(container, probe).is_object()) outline[probe] = probe_outline(container[probe]);
      }
      out["spec"][list].push_back(std::move(outline));
    }
  }
  copy(pod, out, {"status"});
  forget_last_words(out);
  return out;
}

}  // namespace nodemesh::ctl

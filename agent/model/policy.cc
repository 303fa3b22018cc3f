#include "model/policy.h"

#include <algorithm>

namespace nodemesh::model {

std::string Origin::to_string() const {
  std::string text = kind + " " + (ns.empty() ? "" : ns + "/") + name;
  if (!section.empty()) text += " " + section;
  if (!file.empty()) text += " (" + file + ":" + std::to_string(line) + ")";
  return text;
}

StringMatch StringMatch::parse(std::string_view pattern) {
  if (pattern == "*") return {Kind::present, ""};
  if (pattern.starts_with('*')) return {Kind::suffix, std::string(pattern.substr(1))};
  if (pattern.ends_with('*')) return {Kind::prefix, std::string(pattern.substr(0, pattern.size() - 1))};
  return {Kind::exact, std::string(pattern)};
}

bool StringMatch::matches(std::string_view value) const {
  switch (kind) {
    case Kind::exact:
      return value == text;
    case Kind::prefix:
      return value.starts_with(text);
    case Kind::suffix:
      return value.ends_with(text);
    case Kind::present:
      return !value.empty();
  }
  return false;
}

std::string StringMatch::to_string() const {
  return (kind == Kind::suffix || kind == Kind::present ? "*" : "") + text +
         (kind == Kind::prefix ? "*" : "");
}

std::string_view attribute_name(Attribute attribute) {
  static constexpr std::string_view kNames[] = {
      "source.principal", "source.trustDomain", "source.namespace", "source.serviceAccount",
      "source.ip",        "remote.ip",          "destination.ip",   "destination.port"};
  return kNames[static_cast<size_t>(attribute)];
}

std::string_view action_name(Action action) {
  static constexpr std::string_view kNames[] = {"CUSTOM", "DENY", "ALLOW"};
  return kNames[static_cast<size_t>(action)];
}

std::string_view mtls_mode_name(MtlsMode mode) {
  static constexpr std::string_view kNames[] = {"PERMISSIVE", "STRICT", "DISABLE"};
  return kNames[static_cast<size_t>(mode)];
}

bool AppliedPolicy::covers(uint16_t port) const {
  return ports.empty() || std::ranges::find(ports, port) != ports.end();
}

const MtlsRule& WorkloadPolicy::mtls_at(uint16_t port) const {
  auto found = std::ranges::find(port_mtls, port, &PortMtls::port);
  return found == port_mtls.end() ? mtls : found->rule;
}

}  // namespace nodemesh::model

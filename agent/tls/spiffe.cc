#include "tls/spiffe.h"

#include <algorithm>

#include <fmt/format.h>

namespace nodemesh::tls {
namespace {

constexpr std::string_view kScheme = "spiffe://";
constexpr size_t kMaxUri = 2048;  // SPIFFE ID specification 2.3

bool is_lower_alnum(char c) {
  return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9');
}

bool is_trust_domain(std::string_view text) {
  return !text.empty() && text.size() <= 255 && std::ranges::all_of(text, [](char c) {
    return is_lower_alnum(c) || c == '-' || c == '.' || c == '_';
  });
}

// RFC 1123: what Kubernetes takes as the name of a Namespace.
bool is_label(std::string_view text) {
  return !text.empty() && text.size() <= 63 && text.front() != '-' && text.back() != '-' &&
         std::ranges::all_of(text, [](char c) { return is_lower_alnum(c) || c == '-'; });
}

// RFC 1123 subdomain: what Kubernetes takes as the name of a ServiceAccount.
bool is_subdomain(std::string_view text) {
  if (text.empty() || text.size() > 253) return false;
  while (true) {
    size_t dot = text.find('.');
    std::string_view part = text.substr(0, dot);
    if (part.empty() || part.front() == '-' || part.back() == '-') return false;
    if (!std::ranges::all_of(part, [](char c) { return is_lower_alnum(c) || c == '-'; })) return false;
    if (dot == std::string_view::npos) return true;
    text.remove_prefix(dot + 1);
  }
}

// Cuts `text` up to the next '/'; false when there is none.
bool take_segment(std::string_view& text, std::string_view& segment) {
  size_t slash = text.find('/');
  if (slash == std::string_view::npos) return false;
  segment = text.substr(0, slash);
  text.remove_prefix(slash + 1);
  return true;
}

}  // namespace

std::string SpiffeId::uri() const {
  std::string out;
  out.reserve(kScheme.size() + trust_domain.size() + ns.size() + service_account.size() + 8);
  return out.append(kScheme)
      .append(trust_domain)
      .append("/ns/")
      .append(ns)
      .append("/sa/")
      .append(service_account);
}

Result<SpiffeId> SpiffeId::parse(std::string_view uri) {
  auto refuse = [&](std::string_view why) {
    return fail(Reason::PEER_ID_INVALID, fmt::format("identity \"{}\": {}", uri.substr(0, 300), why));
  };
  if (uri.size() > kMaxUri) return refuse("longer than 2048 bytes");
  if (!uri.starts_with(kScheme)) return refuse("does not start with spiffe://");
  std::string_view rest = uri.substr(kScheme.size()), domain, ns_word, ns, sa_word;
  if (!take_segment(rest, domain) || !take_segment(rest, ns_word) || !take_segment(rest, ns) ||
      !take_segment(rest, sa_word) || ns_word != "ns" || sa_word != "sa") {
    return refuse("is not spiffe://<trust domain>/ns/<namespace>/sa/<service account>");
  }
  if (!is_trust_domain(domain)) return refuse("the trust domain may hold only a-z 0-9 . _ -");
  if (!is_label(ns)) return refuse("the namespace is not a DNS label");
  if (!is_subdomain(rest)) return refuse("the service account is not a DNS subdomain");
  return SpiffeId{std::string(domain), std::string(ns), std::string(rest)};
}

bool any_matches(const AcceptedPeers& accepted, const SpiffeId& id) {
  return std::ranges::any_of(accepted, [&](const AcceptedPeer& peer) { return peer.matches(id); });
}

}  // namespace nodemesh::tls

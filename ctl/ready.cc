// `meshctl ready URL…`: whether what answers there says that it is ready, at every address that the name has.
#include <poll.h>

#include <algorithm>
#include <charconv>
#include <optional>
#include <ostream>

#include "ctl/client.h"
#include "ctl/commands.h"
#include "ctl/dial.h"

namespace nodemesh::ctl {
namespace {

constexpr int kBetweenRounds = 500;  // ms

struct Url {
  std::string host;
  uint16_t port = 0;
  std::string path;
};

// http://HOST:PORT/PATH; nothing else is needed.
std::optional<Url> parse_url(std::string_view text) {
  static constexpr std::string_view kScheme = "http://";
  if (!text.starts_with(kScheme)) return std::nullopt;
  text.remove_prefix(kScheme.size());
  auto slash = std::min(text.find('/'), text.size());
  auto authority = text.substr(0, slash);
  auto colon = authority.rfind(':');
  if (colon == authority.npos || colon == 0 || colon + 1 == authority.size()) return std::nullopt;
  auto host = authority.substr(0, colon);
  if (host.starts_with('[') && host.ends_with(']')) host = host.substr(1, host.size() - 2);
  auto digits = authority.substr(colon + 1);
  uint16_t port = 0;
  auto [end, bad] = std::from_chars(digits.data(), digits.data() + digits.size(), port);
  if (bad != std::errc() || end != digits.data() + digits.size()) return std::nullopt;
  std::string path(text.substr(slash));
  return Url{std::string(host), port, path.empty() ? "/" : path};
}

struct Verdict {
  int exit = kOk;
  std::string text;
};

Verdict judge(const std::string& text, const Url& url) {
  auto addresses = addresses_of(url.host, url.port);
  if (addresses.empty()) return {kUnreachable, text + ": no address has the name " + url.host};
  for (const auto& one : addresses) {
    auto address = one.to_string();
    auto answer = http(address, "GET", url.path, seconds(5));
    if (!answer) return {kUnreachable, answer.error().message};
    if (answer->status != 200) return {kFailure, address + url.path + " is not ready: " + answer->body};
  }
  return {kOk, text + ": ready, addresses: " + std::to_string(addresses.size())};
}

}  // namespace

int ready(Context& context, const std::vector<std::string>& urls, int wait_seconds) {
  auto until = Monotonic::now() + seconds(wait_seconds);
  for (const auto& text : urls) {
    auto url = parse_url(text);
    if (!url) return context.failed(kUsage, text + " is no URL", "write http://HOST:PORT/PATH");
    auto verdict = judge(text, *url);
    while (verdict.exit != kOk && Monotonic::now() < until) {
      ::poll(nullptr, 0, kBetweenRounds);
      verdict = judge(text, *url);
    }
    if (verdict.exit != kOk)
      return context.failed(static_cast<Exit>(verdict.exit), printable(verdict.text),
                            "its log says more: kubectl logs");
    context.out << printable(verdict.text) << "\n";
  }
  return kOk;
}

}  // namespace nodemesh::ctl

// `meshctl ready URL…`: whether what answers there says that it is ready, at every address that the name has.
#include <netdb.h>
#undef NO_ADDRESS  // also the name of a Reason
#include <poll.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <ostream>
#include <set>

#include "base/addr.h"
#include "ctl/client.h"
#include "ctl/commands.h"

namespace nodemesh::ctl {
namespace {

constexpr int kBetweenRounds = 500;  // ms

struct Url {
  std::string host, port, path;
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
  std::string path(text.substr(slash));
  return Url{std::string(host), std::string(authority.substr(colon + 1)), path.empty() ? "/" : path};
}

std::set<std::string> addresses_of(const Url& url) {
  addrinfo hints{}, *found = nullptr;
  hints.ai_socktype = SOCK_STREAM;
  std::set<std::string> out;
  if (::getaddrinfo(url.host.c_str(), url.port.c_str(), &hints, &found) != 0) return out;
  std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> owned(found, &::freeaddrinfo);
  for (const addrinfo* one = found; one != nullptr; one = one->ai_next) {
    sockaddr_storage native{};
    std::copy_n(reinterpret_cast<const char*>(one->ai_addr), one->ai_addrlen,
                reinterpret_cast<char*>(&native));
    out.insert(SockAddr::from_native(native).to_string());
  }
  return out;
}

struct Verdict {
  int exit = kOk;
  std::string text;
};

Verdict judge(const std::string& text, const Url& url) {
  auto addresses = addresses_of(url);
  if (addresses.empty()) return {kUnreachable, text + ": no address has the name " + url.host};
  for (const auto& address : addresses) {
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

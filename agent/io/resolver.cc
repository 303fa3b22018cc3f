#include "io/resolver.h"

#include <netdb.h>

#include <cstring>
#include <memory>
#include <utility>

#include <fmt/format.h>

namespace nodemesh::io {
namespace {

Result<std::vector<SockAddr>> look_up(const std::string& host, uint16_t port) {
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_ADDRCONFIG;
  addrinfo* raw = nullptr;
  if (int code = ::getaddrinfo(host.c_str(), nullptr, &hints, &raw); code != 0)
    return fail(fmt::format("cannot resolve {}: {}", host, ::gai_strerror(code)));
  std::unique_ptr<addrinfo, void (*)(addrinfo*)> list(raw, ::freeaddrinfo);
  std::vector<SockAddr> out;
  for (const auto* item = list.get(); item != nullptr; item = item->ai_next) {
    sockaddr_storage native{};
    std::memcpy(&native, item->ai_addr, item->ai_addrlen);
    auto address = SockAddr::from_native(native);
    address.port = port;
    out.push_back(address);
  }
  if (out.empty()) return fail(fmt::format("{} has no address", host));
  return out;
}

}  // namespace

Resolver::~Resolver() {
  if (thread_.joinable()) thread_.join();
}

void Resolver::resolve(const std::string& host, uint16_t port, Done done) {
  if (thread_.joinable()) thread_.join();  // it has answered already
  done_ = std::move(done);
  thread_ = std::thread([this, host, port] {
    mailbox_.post(
        [this, found = look_up(host, port)]() mutable { std::exchange(done_, nullptr)(std::move(found)); });
  });
}

}  // namespace nodemesh::io

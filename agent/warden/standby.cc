#include "warden/standby.h"

#include <algorithm>

namespace nodemesh::warden {
namespace {
constexpr size_t kMaxProxies = 8;
}

void Standby::accept_proxy(Fd socket, pid_t peer) {
  if (proxies_.size() >= kMaxProxies) return;
  ProxyChannelEvents& events = *this;
  proxies_.push_back(std::make_unique<ProxyChannel>(reactor_, events, std::move(socket), peer));
}

// What else it says can wait: it connects again to the warden that this one becomes.
void Standby::on_proxy_message(ProxyChannel& channel, ProxyMessage message, std::vector<Fd>) {
  if (std::holds_alternative<ReturnDone>(message)) channel.send(Welcome{.flags = Welcome::kStandby});
}

void Standby::on_proxy_closed(ProxyChannel& channel, const Error&) {
  std::erase_if(proxies_, [&](const auto& proxy) { return proxy.get() == &channel; });
}

}  // namespace nodemesh::warden

// A warden that waits for the one that serves the node to end: until then it holds the channel open for its
// own proxy and tells it so, since Kubernetes ends the old agent only when the new one is ready. It touches
// nothing else. One thread.
#pragma once

#include <memory>
#include <vector>

#include "warden/channel.h"

namespace nodemesh::warden {

class Standby final : private ProxyChannelEvents {
 public:
  // `reactor` outlives it.
  explicit Standby(io::Reactor& reactor) : reactor_(reactor) {}
  void accept_proxy(Fd socket, pid_t peer);

 private:
  void on_proxy_message(ProxyChannel& channel, ProxyMessage message, std::vector<Fd> descriptors) override;
  void on_proxy_closed(ProxyChannel& channel, const Error& why) override;

  io::Reactor& reactor_;
  std::vector<std::unique_ptr<ProxyChannel>> proxies_;
};

}  // namespace nodemesh::warden

// The first step: takes connections from one of a pod's three listeners and says what they are. The outbound
// listener yields captured connections of the pod's applications with the address they dialled, the inbound
// one plaintext from elsewhere with the application's address, the HBONE one peers of the mesh. Worker thread
// only.
#pragma once

#include <utility>

#include "base/addr.h"
#include "base/fd.h"
#include "bpf/abi.h"
#include "io/reactor.h"

namespace nodemesh::proxy {

class Worker;
struct PodState;

struct Accepted {
  Fd fd;
  uint64_t pod_cookie = 0;
  SockAddr peer;  // who connected
  SockAddr
      local;  // outbound: what the client dialled; inbound: where the application listens; HBONE: podIP:15008
};

class Listener final : private io::EventHandler {
 public:
  Listener(Worker& worker, PodState& pod, nm_listener kind, Fd fd);
  ~Listener();
  nm_listener kind() const { return kind_; }
  // Takes up again what a lack of descriptors left in the backlog.
  void retry() {
    if (std::exchange(starved_, false)) on_events(EPOLLIN);
  }

 private:
  void on_events(uint32_t events) override;
  void take(Accepted accepted);

  Worker& worker_;
  PodState& pod_;
  const nm_listener kind_;
  Fd fd_;
  uint16_t port_ = 0;
  bool starved_ = false;
  io::Deferred more_;
};

}  // namespace nodemesh::proxy

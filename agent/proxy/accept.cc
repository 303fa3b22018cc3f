#include "proxy/accept.h"

#include <sys/socket.h>

#include <cerrno>

#include "base/log.h"
#include "io/socket.h"
#include "proxy/inbound.h"
#include "proxy/outbound.h"
#include "proxy/worker.h"

namespace nodemesh::proxy {
namespace {

// Connections taken in one turn before established ones have theirs.
constexpr int kBurst = 64;

}  // namespace

Listener::Listener(Worker& worker, PodState& pod, nm_listener kind, Fd fd)
    : worker_(worker),
      pod_(pod),
      kind_(kind),
      fd_(std::move(fd)),
      port_(io::local_address(fd_.get()).port),
      more_([this] { on_events(EPOLLIN); }) {
  if (auto added = worker_.reactor.add(fd_.get(), *this, EPOLLIN); !added) {
    log::error(log::Component::proxy, "listener cannot be watched", {{"error", added.error().message}});
  }
}

Listener::~Listener() {
  worker_.reactor.remove(fd_.get(), *this);
}

void Listener::on_events(uint32_t) {
  for (int i = 0; i < kBurst; ++i) {
    sockaddr_storage native;
    socklen_t size = sizeof native;
    Fd fd(::accept4(fd_.get(), reinterpret_cast<sockaddr*>(&native), &size, SOCK_NONBLOCK | SOCK_CLOEXEC));
    if (!fd) {
      if (errno == ECONNABORTED || errno == EINTR) continue;
      // Out of descriptors: the connection waits in the backlog; the worker's tick tries again.
      starved_ = errno != EAGAIN;
      if (starved_) worker_.overload.starved();
      return;
    }
    Reason limit = worker_.overload.check(pod_, fd.get());
    SockAddr local = io::local_address(fd.get());
    Accepted accepted{std::move(fd), pod_.info.cookie, SockAddr::from_native(native), local};
    if (limit == Reason::NONE) {
      take(std::move(accepted));
    } else {
      worker_.overload.refuse(pod_, kind_, std::move(accepted), limit);
    }
  }
  more_.schedule(worker_.reactor);
}

void Listener::take(Accepted accepted) {
  // Somebody found the listener's own ephemeral port: nothing was captured or steered, so there is no
  // destination.
  if (accepted.local.port == port_) {
    worker_.recorder.metrics
        .total(telemetry::Direction::inbound, telemetry::Path::plaintext, Reason::UNPUBLISHED)
        .add();
    return io::close_with_reset(accepted.fd);
  }
  switch (kind_) {
    case NM_LISTENER_OUTBOUND:
      return OutboundSession::begin(worker_, std::move(accepted));
    case NM_LISTENER_HBONE:
      return InboundTunnel::begin(worker_, pod_, std::move(accepted));
    default:
      return PlaintextSession::begin(worker_, pod_, std::move(accepted));
  }
}

}  // namespace nodemesh::proxy

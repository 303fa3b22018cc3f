#include "controller/stop_signal.h"

#include <sys/signalfd.h>

#include <csignal>

namespace nodemesh::controller {

StopSignal::StopSignal(io::Reactor& reactor, std::move_only_function<void()> stop)
    : reactor_(reactor), stop_(std::move(stop)) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  sigaddset(&set, SIGINT);
  sigprocmask(SIG_BLOCK, &set, nullptr);
  fd_.reset(::signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC));
}

StopSignal::~StopSignal() {
  reactor_.remove(fd_.get(), *this);
}

void StopSignal::on_events(uint32_t) {
  signalfd_siginfo info;
  while (::read(fd_.get(), &info, sizeof info) == sizeof info) stop_();
}

}  // namespace nodemesh::controller

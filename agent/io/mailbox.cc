#include "io/mailbox.h"

#include <sys/eventfd.h>

#include <cstdlib>

namespace nodemesh::io {

Mailbox::Mailbox(Reactor& reactor) : reactor_(reactor), event_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  // Fails only when the process is out of descriptors at start; every later post would be lost, so stop here.
  if (!reactor_.add(event_.get(), *this, EPOLLIN)) std::abort();
}

Mailbox::~Mailbox() {
  reactor_.remove(event_.get(), *this);
}

void Mailbox::post(std::move_only_function<void()> work) {
  bool first;
  {
    std::lock_guard lock(mutex_);
    first = queue_.empty();
    queue_.push_back(std::move(work));
  }
  if (first) ::eventfd_write(event_.get(), 1);
}

void Mailbox::on_events(uint32_t) {
  eventfd_t count;
  ::eventfd_read(event_.get(), &count);
  std::vector<std::move_only_function<void()>> work;
  {
    std::lock_guard lock(mutex_);
    work.swap(queue_);
  }
  for (auto& item : work) item();
}

}  // namespace nodemesh::io

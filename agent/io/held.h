// Memory that connections hold because a peer does not read: what write() could not send. Every holder counts
// its own part in its user's account, and all accounts of a thread in one total, which tells its owner when
// it is over the limit. Costs nothing while sockets take what they are given. One thread.
#pragma once

#include <cstddef>
#include <functional>
#include <utility>

#include "io/reactor.h"

namespace nodemesh::io {

// Of one thread. Outlives its accounts.
class HeldTotal {
 public:
  // `over` runs at the end of a turn in which the total was raised above `limit` bytes.
  HeldTotal(Reactor& reactor, size_t limit, std::move_only_function<void()> over)
      : reactor_(reactor), limit_(limit), over_(std::move(over)) {}
  size_t bytes() const { return bytes_; }
  size_t limit() const { return limit_; }

 private:
  friend class HeldAccount;
  Reactor& reactor_;
  const size_t limit_;
  size_t bytes_ = 0;
  Deferred over_;
};

// Of one user, here a pod. Outlives its holders.
class HeldAccount {
 public:
  explicit HeldAccount(HeldTotal& total) : total_(total) {}
  HeldAccount(const HeldAccount&) = delete;
  HeldAccount& operator=(const HeldAccount&) = delete;
  size_t bytes() const { return bytes_; }

 private:
  friend class Held;
  void change(size_t from, size_t to) {
    bytes_ += to - from;
    total_.bytes_ += to - from;
    if (to > from && total_.bytes_ > total_.limit_) total_.over_.schedule(total_.reactor_);
  }
  HeldTotal& total_;
  size_t bytes_ = 0;
};

// The part of one holder; given back when it dies.
class Held {
 public:
  explicit Held(HeldAccount* account = nullptr) : account_(account) {}  // null: not counted
  ~Held() { set(0); }
  Held(const Held&) = delete;
  Held& operator=(const Held&) = delete;
  // Moves what is held to `account`.
  void charge_to(HeldAccount* account) {
    size_t bytes = bytes_;
    set(0);
    account_ = account;
    set(bytes);
  }
  void set(size_t bytes) {
    if (bytes == bytes_) return;
    if (account_ != nullptr) account_->change(bytes_, bytes);
    bytes_ = bytes;
  }
  size_t bytes() const { return bytes_; }

 private:
  HeldAccount* account_;
  size_t bytes_ = 0;
};

}  // namespace nodemesh::io

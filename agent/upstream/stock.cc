#include "upstream/stock.h"

#include <algorithm>

namespace nodemesh::upstream {
namespace {
constexpr auto kKeep = std::chrono::seconds(60);
// A batch that lasted less than this was too small.
constexpr auto kFastUse = std::chrono::milliseconds(100);
}  // namespace

Fd SocketStock::take(warden::SocketKind kind, Monotonic::time_point now, SocketWaiter* waiter) {
  Kind& stock = of(kind);
  stock.used = now;
  Fd socket;
  if (!stock.sockets.empty()) {
    socket = std::move(stock.sockets.back());
    stock.sockets.pop_back();
  } else if (waiter != nullptr) {
    stock.waiters.push_back(waiter);
  }
  if (stock.sockets.size() <= stock.batch / 2 && !stock.asked) {
    if (now - stock.refilled < kFastUse) stock.batch = std::min(stock.batch * 2, warden::kMaxSocketBatch);
    stock.refilled = now;
    refill(kind, stock);
  }
  return socket;
}

void SocketStock::refill(warden::SocketKind kind, Kind& stock) {
  stock.asked = true;
  ask_(kind, stock.batch);
}

void SocketStock::cancel(SocketWaiter& waiter) {
  for (auto& kind : kinds_) std::erase(kind.waiters, &waiter);
}

void SocketStock::add(warden::SocketKind kind, std::vector<Fd> sockets) {
  Kind& stock = of(kind);
  stock.asked = false;
  std::move(sockets.begin(), sockets.end(), std::back_inserter(stock.sockets));
  while (!stock.waiters.empty() && !stock.sockets.empty()) {
    SocketWaiter* waiter = stock.waiters.front();
    stock.waiters.pop_front();
    Fd socket = std::move(stock.sockets.back());
    stock.sockets.pop_back();
    waiter->on_socket(std::move(socket));
  }
  if (!stock.waiters.empty() && !stock.asked) {
    stock.batch = std::min(stock.batch * 2, warden::kMaxSocketBatch);
    refill(kind, stock);
  }
}

void SocketStock::none(warden::SocketKind kind, const Error& error) {
  Kind& stock = of(kind);
  stock.asked = false;
  // One by one, since what one does may cancel another; those that come meanwhile wait for the next answer.
  for (size_t count = stock.waiters.size(); count > 0 && !stock.waiters.empty(); --count) {
    SocketWaiter* waiter = stock.waiters.front();
    stock.waiters.pop_front();
    waiter->on_no_socket(error);
  }
}

void SocketStock::trim(Monotonic::time_point now) {
  for (auto& stock : kinds_) {
    if (stock.sockets.empty() || now - stock.used < kKeep) continue;
    stock.sockets.clear();
    stock.batch = kFirstBatch;
  }
}

void SocketStock::clear(const Error& error) {
  for (size_t kind = 0; kind < kinds_.size(); ++kind) {
    kinds_[kind].sockets.clear();
    none(static_cast<warden::SocketKind>(kind), error);
  }
}

}  // namespace nodemesh::upstream

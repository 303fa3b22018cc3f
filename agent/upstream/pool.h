// One worker's HBONE connections as a client. They are pooled by {source pod, destination address, accepted
// identities} and never shared between pods, because a socket lives in one namespace. A stream is handed out
// on a connection that may still be connecting; when all are full another is dialled rather than waiting.
// Worker thread only.
#pragma once

#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/addr.h"
#include "http/hbone.h"
#include "io/buffers.h"
#include "telemetry/metrics.h"
#include "tls/context.h"
#include "upstream/stock.h"

namespace nodemesh::upstream {

// The pod whose connections these are, as far as the pool needs it.
struct PoolSource {
  uint64_t cookie = 0;  // of its network namespace
  int family = 0;       // of its sockets: AF_INET6 (dual-stack) or AF_INET
  SocketStock* stock = nullptr;
  std::shared_ptr<const tls::Credential> credential;  // null: NO_IDENTITY
  io::HeldAccount* account = nullptr;                 // of what its connections hold; null: not counted
};

struct TunnelKey {
  uint64_t cookie = 0;
  SockAddr peer;         // podIP:15008
  std::string accepted;  // "ns/sa"
  bool operator==(const TunnelKey&) const = default;
};

struct TunnelKeyHash {
  size_t operator()(const TunnelKey& key) const {
    return AddrHash{}(key.peer) ^ (key.cookie * 0x9E3779B97F4A7C15ull) ^
           std::hash<std::string>{}(key.accepted);
  }
};

// Someone who wants a stream. Exactly one of the calls comes, unless cancelled before.
class TunnelWaiter {
 public:
  virtual void on_tunnel(http::HboneConnection& connection) = 0;
  virtual void on_no_tunnel(const Error& error) = 0;

 protected:
  ~TunnelWaiter() = default;
};

class TunnelPool {
 public:
  TunnelPool(io::Reactor& reactor, io::Buffers& buffers, tls::ClientContext& tls,
             telemetry::MetricShard& metrics, const http::HboneTimes& times);
  ~TunnelPool();

  // A connection with room for a stream: at once (returned, `waiter` is not kept), or null and `waiter` is
  // told, within this call when no connection can be made.
  http::HboneConnection* acquire(const PoolSource& source, const TunnelKey& key, TunnelWaiter& waiter);
  void cancel(TunnelWaiter& waiter);
  // The pod is gone or its identity is lost: its connections end now.
  void close_pod(uint64_t cookie, const Error& error);
  // The roots have changed: ends those whose peer they do not vouch for.
  void verify_again(tls::Verifier& verifier);
  // No new streams on those whose peer's certificate has run out.
  void drain_expired(WallClock::time_point now);
  // No new streams on any; they end when their streams do.
  void drain_all();
  std::vector<http::HboneConnection*> connections_of(uint64_t cookie) const;
  size_t size() const;
  size_t groups() const { return groups_.size(); }  // keys that have a connection or somebody who waits

 private:
  class Group;
  http::HboneConnection* usable(Group& group) const;

  io::Reactor& reactor_;
  io::Buffers& buffers_;
  tls::ClientContext& tls_;
  telemetry::MetricShard& metrics_;
  const http::HboneTimes& times_;
  const http::H2Limits limits_;
  std::unordered_map<TunnelKey, std::unique_ptr<Group>, TunnelKeyHash> groups_;
};

}  // namespace nodemesh::upstream

// Chooses endpoints for one worker's connections and remembers how many it has open to each. Worker thread
// only.
#pragma once

#include <memory>
#include <random>
#include <string>
#include <unordered_map>

#include "model/service.h"
#include "upstream/lb/policy.h"

namespace nodemesh::upstream {

// Counts one open connection to an endpoint while it lives.
class EndpointHold {
 public:
  EndpointHold() = default;
  EndpointHold(std::shared_ptr<PortLoad> load, SockAddr endpoint);
  EndpointHold(EndpointHold&& other) noexcept : load_(std::move(other.load_)), endpoint_(other.endpoint_) {}
  EndpointHold& operator=(EndpointHold&& other) noexcept {
    if (this != &other) release(), load_ = std::move(other.load_), endpoint_ = other.endpoint_;
    return *this;
  }
  ~EndpointHold() { release(); }

 private:
  void release();
  std::shared_ptr<PortLoad> load_;
  SockAddr endpoint_;
};

class Balancer {
 public:
  explicit Balancer(uint64_t seed) : random_(seed) {}
  // An endpoint for a client that dialled `vip`, or null when none is usable. With ClientIP affinity a client
  // keeps its endpoint while the set of usable ones stays as it is. The pointer lives as long as `port`.
  const model::Endpoint* pick(const model::Service& service, const model::ServicePort& port, const Addr& vip,
                              const Addr& client);
  EndpointHold hold(const model::Service& service, const model::ServicePort& port,
                    const model::Endpoint& endpoint);
  // Drops what is remembered of Services that are gone; called when a new snapshot comes.
  void forget_unused();

 private:
  std::shared_ptr<PortLoad>& load_of(const model::Service& service, const model::ServicePort& port);
  std::mt19937_64 random_;
  std::unordered_map<std::string, std::shared_ptr<PortLoad>> loads_;  // by host:port
};

}  // namespace nodemesh::upstream

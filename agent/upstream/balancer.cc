#include "upstream/balancer.h"

namespace nodemesh::upstream {
namespace {

// Highest random weight (rendezvous) hashing: an endpoint that leaves moves only its own clients.
const model::Endpoint* affine(std::span<const model::Endpoint> endpoints, const Addr& client) {
  const model::Endpoint* best = nullptr;
  uint64_t best_weight = 0;
  for (const auto& endpoint : endpoints) {
    uint64_t weight = AddrHash{}(endpoint.target()) ^ (AddrHash{}(client) * 0x94D049BB133111EBull);
    weight ^= weight >> 31;
    weight *= 0xBF58476D1CE4E5B9ull;
    weight ^= weight >> 29;
    if (best == nullptr || weight > best_weight) best = &endpoint, best_weight = weight;
  }
  return best;
}

}  // namespace

EndpointHold::EndpointHold(std::shared_ptr<PortLoad> load, SockAddr endpoint)
    : load_(std::move(load)), endpoint_(endpoint) {
  load_->open[endpoint_] += 1;
}

void EndpointHold::release() {
  if (load_ == nullptr) return;
  auto found = load_->open.find(endpoint_);
  if (found != load_->open.end() && --found->second == 0) load_->open.erase(found);
  load_.reset();
}

std::shared_ptr<PortLoad>& Balancer::load_of(const model::Service& service, const model::ServicePort& port) {
  auto& load = loads_[service.host + ":" + std::to_string(port.port)];
  if (load == nullptr) load = std::make_shared<PortLoad>();
  return load;
}

const model::Endpoint* Balancer::pick(const model::Service& service, const model::ServicePort& port,
                                      const Addr& vip, const Addr& client) {
  auto usable = port.usable(vip);
  if (usable.empty()) return nullptr;
  if (service.client_ip_affinity) return affine(usable, client);
  if (usable.size() == 1) return &usable.front();
  auto& load = load_of(service, port);
  size_t index = lb_function(port.lb)(usable, *load, random_());
  load->picks += 1;
  return &usable[index];
}

EndpointHold Balancer::hold(const model::Service& service, const model::ServicePort& port,
                            const model::Endpoint& endpoint) {
  if (port.usable_v4 + port.usable_v6 <= 1) return {};
  return EndpointHold(load_of(service, port), endpoint.target());
}

void Balancer::forget_unused() {
  std::erase_if(
      loads_, [](const auto& entry) { return entry.second.use_count() == 1 && entry.second->open.empty(); });
}

}  // namespace nodemesh::upstream

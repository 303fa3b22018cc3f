#include "translate/remote.h"

#include <algorithm>
#include <map>
#include <unordered_map>

#include "translate/core.h"
#include "translate/workloads.h"

namespace nodemesh::translate {
namespace {

using kube::Severity;
using model::Mesh;
using model::Workload;
using Said = WorkloadFacts::Pod;

class Remote {
 public:
  Remote(const kube::Store& store, const WorkloadFacts& facts, const Evidence& evidence,
         const RemoteOptions& options, Reports& reports)
      : store_(store), facts_(facts), evidence_(evidence), options_(options), reports_(reports) {}

  std::vector<Workload> run() {
    judge();
    drop_disputed();
    add_believed();
    add_endpoints();
    add_unplaced();
    return std::move(out_);
  }

 private:
  // Sorts what is said of each address into what counts, what nobody can confirm, and what is wrong.
  void judge() {
    for (const auto& said : facts_.pods) {
      for (const auto& address : said.pod->addresses) {
        if (options_.is_ours(address)) {
          refuse(said, address, "is a pod's of this node");
          continue;
        }
        auto node = evidence_.node_of(address, said.common->ns);
        if (node == said.node)
          counted_[address].push_back(&said);
        else if (node.empty())
          unplaced_[address].push_back(&said);
        else
          refuse(said, address, "is on node \"" + std::string(node) + "\"");
      }
    }
  }

  void refuse(const Said& said, const Addr& address, const std::string& why) {
    reports_.add(*said.object, Severity::error, said.field + ".ips",
                 "node \"" + std::string(said.node) + "\" names " + address.to_string() + ", which " + why +
                     ", so this is not believed",
                 "only the agent of a pod's own node may name it; see who wrote the slice");
  }

  void drop_disputed() {
    for (auto& [address, sayers] : counted_) {
      if (sayers.size() < 2) continue;
      for (const auto* said : sayers) {
        reports_.add(*said->object, Severity::error, said->field + ".ips",
                     "address " + address.to_string() + " is named for two pods, so neither is believed",
                     "wait until the older pod is gone, or see who wrote the slices");
      }
      unplaced_[address] = std::move(sayers);
    }
    std::erase_if(counted_, [](const auto& entry) { return entry.second.empty(); });
  }

  void add_believed() {
    for (const auto& said : facts_.pods) {
      std::vector<Addr> addresses;
      for (const auto& address : said.pod->addresses) {
        auto found = counted_.find(address);
        if (found != counted_.end() && found->second.front() == &said) addresses.push_back(address);
      }
      if (addresses.empty()) continue;
      out_.push_back(believed(said, std::move(addresses)));
    }
  }

  Workload believed(const Said& said, std::vector<Addr> addresses) const {
    const auto& common = *said.common;
    Workload workload{.origin = said.object->origin(said.field),
                      .uid = said.pod->uid,
                      .ns = common.ns,
                      .name = said.pod->name,
                      .service_account = common.service_account,
                      .node = std::string(said.node),
                      .addresses = std::move(addresses),
                      .labels = common.labels};
    workload.identity = model::spiffe_id(options_.trust_domain, workload.ns, workload.service_account);
    workload.workload_type = common.owner_name.empty() ? "pod" : common.owner_type;
    workload.workload_name = common.owner_name.empty() ? workload.name : common.owner_name;
    workload.mesh = said.pod->mesh ? Mesh::hbone : Mesh::none;
    workload.enrolled = said.pod->mesh;
    name_from_labels(workload);
    place(store_, workload);
    return workload;
  }

  // Pods of which only EndpointSlices speak.
  void add_endpoints() {
    for (const auto& [address, claims] : evidence_.all_claims()) {
      if (counted_.contains(address) || options_.is_ours(address) || evidence_.is_node_address(address))
        continue;
      auto ns = claims.front().ns;
      // Whom two namespaces name, nobody can tell which of them to expect.
      if (std::ranges::any_of(claims, [&](const auto& claim) { return claim.ns != ns; })) {
        out_.push_back(nobody(address, *claims.front().object));
      } else {
        auto& workload = named(std::string(ns), std::string(claims.front().pod), *claims.front().object);
        workload.node = evidence_.node_of(address, ns);
        workload.addresses.push_back(address);
        if (unplaced_.contains(address) || !is_plainly(address, workload.node)) workload.mesh = Mesh::unknown;
      }
      unplaced_.erase(address);
    }
  }

  // Whoever may write EndpointSlices, in whichever namespace, may name any node for any address: that alone
  // must not turn into plaintext what a Node says is another's.
  bool is_plainly(const Addr& address, std::string_view node) const {
    auto by_range = evidence_.node_of_range(address);
    return facts_.is_plain(node) && (by_range.empty() || by_range == node);
  }

  // A pod has a slice of endpoints for each family.
  Workload& named(std::string ns, std::string name, const kube::Object& object) {
    auto key = ns + "/" + name;
    auto [at, added] = strangers_.try_emplace(std::move(key));
    if (added) at->second = stranger(std::move(ns), std::move(name), object);
    return at->second;
  }

  // Of what slices alone name and no other can confirm, nothing is known.
  void add_unplaced() {
    for (const auto& [address, sayers] : unplaced_) {
      if (!evidence_.is_node_address(address)) out_.push_back(nobody(address, *sayers.front()->object));
    }
    for (auto& [name, workload] : strangers_) {
      place(store_, workload);
      std::ranges::sort(workload.addresses);
      out_.push_back(std::move(workload));
    }
  }

  Workload stranger(std::string ns, std::string name, const kube::Object& object) const {
    Workload workload{.origin = object.origin(), .ns = std::move(ns), .name = std::move(name)};
    workload.uid = workload.ns + "/" + workload.name;
    workload.workload_type = "pod";
    workload.workload_name = workload.name;
    name_from_labels(workload);
    return workload;
  }

  Workload nobody(const Addr& address, const kube::Object& object) const {
    auto workload = stranger("", address.to_string(), object);
    workload.addresses = {address};
    workload.mesh = Mesh::unknown;
    return workload;
  }

  const kube::Store& store_;
  const WorkloadFacts& facts_;
  const Evidence& evidence_;
  const RemoteOptions& options_;
  Reports& reports_;
  std::unordered_map<Addr, std::vector<const Said*>> counted_;
  std::map<Addr, std::vector<const Said*>> unplaced_;
  std::map<std::string, Workload> strangers_;  // by "namespace/name"
  std::vector<Workload> out_;
};

}  // namespace

std::vector<Workload> remote_workloads(const kube::Store& store, const WorkloadFacts& facts,
                                       const Evidence& evidence, const RemoteOptions& options,
                                       Reports& reports) {
  return Remote(store, facts, evidence, options, reports).run();
}

model::PeerRules peer_rules(const kube::Store& store, const WorkloadFacts& facts, const Evidence& evidence,
                            model::UnknownPeer unknown) {
  model::PeerRules rules{.everyone_known = false, .unknown = unknown};
  for (const auto& entry : store.objects("ServiceCIDR")) {
    const auto& cidrs = static_cast<const ServiceCidrSpec&>(*entry.decoded).cidrs;
    rules.services.insert(rules.services.end(), cidrs.begin(), cidrs.end());
  }
  for (const auto& [range, node] : evidence.ranges()) {
    if (evidence.node_of_range(range.network) == node && facts.is_plain(node))
      rules.plain_ranges.push_back(range);
  }
  for (const auto& [address, node] : evidence.node_addresses()) rules.node_addresses.push_back(address);
  std::ranges::sort(rules.node_addresses);
  return rules;
}

}  // namespace nodemesh::translate

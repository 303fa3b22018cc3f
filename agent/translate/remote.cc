#include "translate/remote.h"

#include <algorithm>
#include <array>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <tuple>
#include <utility>

#include "translate/core.h"
#include "translate/workloads.h"

namespace nodemesh::translate {
namespace {

using kube::Severity;
using model::Mesh;
using model::Workload;
using Said = WorkloadFacts::Pod;

using model::Shared;

class Remote {
 public:
  Remote(const kube::Store& store, const WorkloadFacts& facts, const Evidence& evidence,
         const RemoteOptions& options, RemoteMemory& memory, Reports& reports)
      : store_(store),
        facts_(facts),
        evidence_(evidence),
        options_(options),
        memory_(memory),
        reports_(reports) {}

  std::vector<Shared<Workload>> run() {
    ++memory_.round;
    out_.reserve(facts_.pods.size());
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
    counted_.reserve(facts_.pods.size() * 2);
    for (const auto& said : facts_.pods) {
      for (const auto& address : said.pod->addresses) {
        if (options_.is_ours(address)) {
          refuse(said, address, "is a pod's of this node");
          continue;
        }
        auto node = evidence_.node_of(address, said.common().ns);
        if (node == said.node)
          count(said, address);
        else if (node.empty())
          unplaced_[address].push_back(&said);
        else
          refuse(said, address, "is on node \"" + std::string(node) + "\"");
      }
    }
  }

  void count(const Said& said, const Addr& address) {
    auto [at, first] = counted_.emplace(address, &said);
    if (first) return;
    auto& sayers = disputed_[address];
    if (sayers.empty()) sayers.push_back(at->second);
    sayers.push_back(&said);
  }

  void refuse(const Said& said, const Addr& address, const std::string& why) {
    reports_.add(said.object(), Severity::error, said.field() + ".ips",
                 "node \"" + std::string(said.node) + "\" names " + address.to_string() + ", which " + why +
                     ", so this is not believed",
                 "only the agent of a pod's own node may name it; see who wrote the slice");
  }

  // An agent and a tenant who deceive together cannot take an address from the pod of the node that has its
  // range.
  bool settle_by_range(const Addr& address, const std::vector<const Said*>& sayers) {
    auto node = evidence_.node_of_range(address);
    auto of_node = [&](const Said* said) { return said->node == node; };
    if (node.empty() || std::ranges::count_if(sayers, of_node) != 1) return false;
    counted_[address] = *std::ranges::find_if(sayers, of_node);
    for (const auto* said : sayers) {
      if (!of_node(said)) refuse(*said, address, "is in the range of node \"" + std::string(node) + "\"");
    }
    return true;
  }

  void drop_disputed() {
    for (auto& [address, sayers] : disputed_) {
      if (settle_by_range(address, sayers)) continue;
      for (const auto* said : sayers) {
        reports_.add(said->object(), Severity::error, said->field() + ".ips",
                     "address " + address.to_string() + " is named for two pods, so neither is believed",
                     "wait until the older pod is gone, or see who wrote the slices");
      }
      unplaced_[address] = std::move(sayers);
      counted_.erase(address);
    }
  }

  void add_believed() {
    for (size_t begin = 0, end = 0; begin < facts_.pods.size(); begin = end) {
      const auto* slice = facts_.pods[begin].slice;
      while (end < facts_.pods.size() && facts_.pods[end].slice == slice) ++end;
      add_slice(*slice, std::span(facts_.pods).subspan(begin, end - begin));
    }
    std::erase_if(memory_.slices, [&](const auto& entry) { return entry.second.round != memory_.round; });
  }

  void add_slice(const kube::Entry& slice, std::span<const Said> pods) {
    auto& memory = memory_.slices[slice.object->key.name];
    const auto* node = store_.find("Node", "", pods.front().node);
    auto label = [&](const char* name) {
      return memory_.shared.text(node ? node->object->label(name) : std::string_view());
    };
    auto region = label("topology.kubernetes.io/region"), zone = label("topology.kubernetes.io/zone");
    RemoteMemory::Slice before;
    bool same = memory.object == slice.object && memory.trust_domain == options_.trust_domain &&
                memory.region == region && memory.zone == zone;
    if (!same) {
      before = std::exchange(memory, {slice.object, options_.trust_domain, region, zone, {}, 0});
      memory.pods.resize(pods.size());
    }
    memory.round = memory_.round;
    std::optional<SliceParts> parts;
    for (size_t i = 0; i < pods.size(); ++i) {
      auto& made = memory.pods[i];
      if (!is_as_before(pods[i], made)) {
        if (!parts) parts = parts_of(slice, pods.front(), memory);
        made = believed(pods[i], before, *parts);
      }
      if (made) out_.push_back(made);
    }
  }

  bool counts(const Said& said, const Addr& address) const {
    auto found = counted_.find(address);
    return found != counted_.end() && found->second == &said;
  }

  bool is_as_before(const Said& said, const Shared<Workload>& made) const {
    if (!made) return false;
    size_t number = 0;
    for (const auto& address : said.pod->addresses) {
      if (!counts(said, address)) continue;
      if (number == made->addresses.size() || made->addresses[number++] != address) return false;
    }
    return number == made->addresses.size();
  }

  // What pods of one slice have in common.
  struct SliceParts {
    model::Origin origin;
    Text node, region, zone;
  };
  SliceParts parts_of(const kube::Entry& slice, const Said& first, const RemoteMemory::Slice& memory) {
    auto origin = slice.object->origin();
    origin.kind = memory_.shared.text(origin.kind);
    return {std::move(origin), memory_.shared.text(first.node), memory.region, memory.zone};
  }

  Shared<Workload> believed(const Said& said, const RemoteMemory::Slice& before, const SliceParts& parts) {
    std::vector<Addr> addresses;
    for (const auto& address : said.pod->addresses) {
      if (counts(said, address)) addresses.push_back(address);
    }
    if (addresses.empty()) return {};
    auto [common, fresh] = by_template_.try_emplace(&said.common());
    if (fresh) common->second = in_common(said.common());
    Workload workload = common->second;
    workload.origin = parts.origin;
    workload.node = parts.node;
    workload.region = parts.region;
    workload.zone = parts.zone;
    workload.uid = said.pod->uid;
    workload.name = said.pod->name;
    workload.addresses = std::move(addresses);
    workload.mesh = said.pod->mesh ? Mesh::hbone : Mesh::none;
    workload.enrolled = said.pod->mesh;
    workload.origin.section = section(said);
    name_pod(workload, said.common());
    auto same = std::ranges::find_if(before.pods, [&](const auto& old) { return old && *old == workload; });
    if (same != before.pods.end()) return *same;
    return std::make_shared<const Workload>(std::move(workload));
  }

  static Text section(const Said& said) {
    static const auto kSections = [] {
      std::array<Text, kPodsPerSlice> out;
      for (size_t i = 0; i < out.size(); ++i) out[i] = "spec.pods[" + std::to_string(i) + "]";
      return out;
    }();
    return said.index < kSections.size() ? kSections[said.index] : Text(said.field());
  }

  // The pods of a template, whatever slices have it.
  Workload in_common(const WorkloadSliceSpec::Template& from) {
    Workload workload{
        .ns = from.ns, .service_account = from.service_account, .labels = memory_.shared.one(from.labels)};
    workload.identity = model::spiffe_id(options_.trust_domain, workload.ns, workload.service_account);
    workload.workload_type = from.owner_name.empty() ? "pod" : from.owner_type;
    workload.workload_name = from.owner_name;
    name_from_labels(workload);
    share_words(workload);
    return workload;
  }

  // Where neither an owner nor a label names the workload, the pod does.
  void name_pod(Workload& workload, const WorkloadSliceSpec::Template& from) {
    if (!from.owner_name.empty()) return;
    workload.workload_name = workload.name;
    name_from_labels(workload);
    share_words(workload);
  }

  void share_words(Workload& workload) {
    for (auto* word : {&workload.ns, &workload.service_account, &workload.identity, &workload.workload_name,
                       &workload.workload_type, &workload.app, &workload.version, &workload.canonical_name,
                       &workload.canonical_revision})
      *word = memory_.shared.text(*word);
  }

  // Pods of which only EndpointSlices speak.
  void add_endpoints() {
    evidence_.for_each_address([&](const Addr& address, std::span<const EndpointClaim> claims) {
      if (counted_.contains(address) || options_.is_ours(address) || evidence_.is_node_address(address))
        return;
      auto vouched = namespace_of_slices(address);
      auto first = std::ranges::min(claims, {}, [&](const EndpointClaim& claim) {
        return std::tuple(claim.ns() != vouched, claim.ns(), std::string_view(claim.object->key.name),
                          claim.pod());
      });
      // Whom two namespaces name, nobody can tell which of them to expect, but for slices that do.
      bool two = std::ranges::any_of(claims, [&](const auto& claim) { return claim.ns() != first.ns(); });
      if (two && first.ns() != vouched) {
        strangers_.try_emplace("/" + address.to_string(), nobody(address, *first.object));
      } else {
        auto& workload = named(std::string(first.ns()), std::string(first.pod()), *first.object);
        workload.node = evidence_.node_of(address, first.ns());
        workload.addresses.push_back(address);
        if (unplaced_.contains(address) || !is_plain(address, workload.node)) workload.mesh = Mesh::unknown;
      }
      unplaced_.erase(address);
    });
  }

  // Of the pod that slices give an address which they cannot prove; empty where they do not agree.
  std::string_view namespace_of_slices(const Addr& address) const {
    auto found = unplaced_.find(address);
    if (found == unplaced_.end()) return {};
    const auto& sayers = found->second;
    std::string_view ns = sayers.front()->common().ns;
    bool one = std::ranges::all_of(sayers, [&](const Said* said) { return said->common().ns == ns; });
    return one ? ns : std::string_view();
  }

  // An address in another node's range is not made plain by who puts it on a plain node: the EndpointSlice
  // may be of a namespace that is not the pod's.
  bool is_plain(const Addr& address, std::string_view node) const {
    auto range = evidence_.node_of_range(address);
    return (range.empty() || range == node) && facts_.is_plain(node);
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
      if (!evidence_.is_node_address(address) && !counted_.contains(address))
        strangers_.try_emplace("/" + address.to_string(), nobody(address, sayers.front()->object()));
    }
    for (auto& [name, workload] : strangers_) {
      place(store_, workload);
      std::ranges::sort(workload.addresses);
      add_stranger(name, std::move(workload));
    }
    std::erase_if(memory_.strangers,
                  [&](const auto& entry) { return !kept_strangers_.contains(entry.second.get()); });
  }

  void add_stranger(const std::string& key, Workload workload) {
    auto& before = memory_.strangers[key];
    if (!before || !(*before == workload)) before = std::make_shared<const Workload>(std::move(workload));
    kept_strangers_.insert(before.get());
    out_.push_back(before);
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
  RemoteMemory& memory_;
  Reports& reports_;
  std::unordered_map<Addr, const Said*> counted_;
  std::map<Addr, std::vector<const Said*>> disputed_, unplaced_;
  std::map<std::string, Workload> strangers_;  // by "namespace/name", or "/address"
  std::set<const Workload*> kept_strangers_;
  std::unordered_map<const WorkloadSliceSpec::Template*, Workload> by_template_;
  std::vector<Shared<Workload>> out_;
};

}  // namespace

std::vector<Shared<Workload>> remote_workloads(const kube::Store& store, const WorkloadFacts& facts,
                                               const Evidence& evidence, const RemoteOptions& options,
                                               RemoteMemory& memory, Reports& reports) {
  return Remote(store, facts, evidence, options, memory, reports).run();
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

#include "translate/slice_plan.h"

#include <algorithm>
#include <array>
#include <iterator>
#include <set>

namespace nodemesh::translate {
namespace {

using Slice = WorkloadSliceSpec;

// Labels that differ from one roll-out, or one run, to the next and that nobody selects by: with them each
// would need a template of its own.
constexpr std::array<std::string_view, 5> kFleeting{"pod-template-hash", "controller-revision-hash",
                                                    "pod-template-generation", "controller-uid",
                                                    "batch.kubernetes.io/controller-uid"};
// A tenant's pod may carry labels without end; a slice must stay far below what etcd takes.
constexpr size_t kMaxLabelBytes = 16 << 10;

bool is_fleeting(std::string_view key) {
  return std::ranges::find(kFleeting, key) != kFleeting.end();
}

Slice::Template template_of(const model::Workload& pod) {
  Slice::Template out{.ns = pod.ns,
                      .service_account = pod.service_account,
                      .owner_type = pod.workload_type,
                      .owner_name = pod.workload_type == "pod" ? "" : pod.workload_name};
  std::copy_if(pod.labels->begin(), first_label_left_out(pod.labels),
               std::inserter(out.labels, out.labels.end()),
               [](const auto& label) { return !is_fleeting(label.first); });
  if (pod.mesh == model::Mesh::hbone) out.protocols = {"nm1", "h2"};
  return out;
}

struct Wanted {
  Slice::Pod pod;
  model::Shared<Slice::Template> common;
};

std::map<std::string, Wanted> wanted_pods(const std::string& node,
                                          const std::vector<model::Shared<model::Workload>>& pods) {
  std::map<std::string, Wanted> out;
  for (const auto& pod : pods) {
    if (pod->host_network || pod->node != node || pod->addresses.empty()) continue;
    Wanted wanted{{.uid = pod->uid, .name = pod->name, .addresses = pod->addresses},
                  std::make_shared<const Slice::Template>(template_of(*pod))};
    if (wanted.pod.addresses.size() > kAddressesPerPod) wanted.pod.addresses.resize(kAddressesPerPod);
    wanted.pod.mesh = pod->mesh != model::Mesh::none;
    out.emplace(pod->uid, std::move(wanted));
  }
  return out;
}

// A pod that will be in the mesh has a node, seconds before it has an address: only once others know that one
// is to come, nobody of this node's addresses is taken for plain by none being named. Where one is named
// already that is so.
bool awaits_first_mesh_pod(const std::string& node, const std::vector<model::Shared<model::Workload>>& pods,
                           const std::map<std::string, Wanted>& wanted) {
  return std::ranges::none_of(wanted, [](const auto& entry) { return entry.second.pod.mesh; }) &&
         std::ranges::any_of(pods, [&](const auto& pod) {
           return pod->node == node && !pod->host_network && pod->addresses.empty() &&
                  pod->mesh != model::Mesh::none;
         });
}

// A slice in the making.
struct Draft {
  std::vector<const Wanted*> pods;
  bool changed = false;
};

// Templates that are still used keep their places, so that equal content has equal text.
Slice build(const std::string& node, const Draft& draft, const Slice* before) {
  Slice out;
  out.node = node;
  auto used = [&](const model::Shared<Slice::Template>& one) {
    return std::ranges::any_of(draft.pods, [&](const Wanted* pod) { return pod->common == one; });
  };
  if (before) std::ranges::copy_if(before->templates, std::back_inserter(out.templates), used);
  for (const Wanted* wanted : draft.pods) {
    auto found = std::ranges::find(out.templates, wanted->common);
    if (found == out.templates.end()) found = out.templates.insert(found, wanted->common);
    out.pods.push_back(wanted->pod);
    out.pods.back().template_index = static_cast<size_t>(found - out.templates.begin());
  }
  return out;
}

bool says_the_same(const Slice& held, size_t index, const Wanted& wanted) {
  Slice::Pod pod = wanted.pod;
  pod.template_index = held.pods[index].template_index;
  return held.pods[index] == pod && held.templates[pod.template_index] == wanted.common;
}

std::map<uint32_t, Draft> keep_places(const std::map<std::string, Wanted>& wanted, const HeldSlices& held,
                                      std::set<std::string>& placed) {
  std::map<uint32_t, Draft> drafts;
  for (const auto& [number, slice] : held) {
    Draft& draft = drafts[number];
    for (size_t i = 0; i < slice.spec.pods.size(); ++i) {
      auto found = wanted.find(slice.spec.pods[i].uid);
      if (found == wanted.end() || !placed.insert(found->first).second) {
        draft.changed = true;
        continue;
      }
      draft.changed |= !says_the_same(slice.spec, i, found->second);
      draft.pods.push_back(&found->second);
    }
  }
  drafts[0];  // carries the mark, so it is always there
  return drafts;
}

Draft& place_for_new(std::map<uint32_t, Draft>& drafts) {
  Draft* roomy = nullptr;
  uint32_t unused = 0;
  for (auto& [number, draft] : drafts) {
    if (number == unused) ++unused;
    if (draft.pods.size() >= kPodsPerSlice) continue;
    if (draft.changed) return draft;
    if (!roomy) roomy = &draft;
  }
  return roomy ? *roomy : drafts[unused];
}

}  // namespace

std::map<std::string, std::string>::const_iterator first_label_left_out(
    const std::map<std::string, std::string>& labels) {
  size_t bytes = 0;
  return std::ranges::find_if(labels, [&](const auto& label) {
    if (!is_fleeting(label.first)) bytes += label.first.size() + label.second.size();
    return bytes > kMaxLabelBytes;
  });
}

std::vector<SliceChange> plan_slices(const std::string& node,
                                     const std::vector<model::Shared<model::Workload>>& pods,
                                     const HeldSlices& held) {
  auto wanted = wanted_pods(node, pods);
  std::set<std::string> placed;
  auto drafts = keep_places(wanted, held, placed);
  for (const auto& [uid, one] : wanted) {
    if (placed.contains(uid)) continue;
    Draft& draft = place_for_new(drafts);
    draft.pods.push_back(&one);
    draft.changed = true;
  }
  const bool complete = !awaits_first_mesh_pod(node, pods, wanted);
  std::vector<SliceChange> out;
  for (auto& [number, draft] : drafts) {
    auto before = held.find(number);
    bool exists = before != held.end();
    if (draft.pods.empty() && number != 0) {
      if (exists) out.push_back({SliceChange::Verb::remove, number, {}, before->second.resource_version});
      continue;
    }
    Slice made = build(node, draft, exists ? &before->second.spec : nullptr);
    made.complete = complete && number == 0;
    if (exists && before->second.spec == made) continue;
    out.push_back({exists ? SliceChange::Verb::replace : SliceChange::Verb::create, number, std::move(made),
                   exists ? before->second.resource_version : ""});
  }
  if (!out.empty() && out.front().number == 0) std::ranges::rotate(out, out.begin() + 1);
  return out;
}

}  // namespace nodemesh::translate

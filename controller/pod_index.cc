#include "controller/pod_index.h"

#include "kube/json.h"

namespace nodemesh::controller {
namespace {

std::string text_of(const kube::Node& object, std::string_view part, std::string_view name) {
  const kube::Node* map = object.find(part);
  const kube::Node* value = map != nullptr ? map->find(name) : nullptr;
  return value != nullptr && value->type == kube::Node::Type::string ? value->text : std::string();
}

}  // namespace

std::optional<PodFact> read_pod(const kube::Object& object) {
  PodFact out{
      .ns = object.key.ns, .name = object.key.name, .uid = object.uid, .node = {}, .service_account = {}};
  out.node = text_of(object.root, "spec", "nodeName");
  out.service_account = text_of(object.root, "spec", "serviceAccountName");
  std::string phase = text_of(object.root, "status", "phase");
  out.finished = phase == "Succeeded" || phase == "Failed";
  // The API server fills serviceAccountName in; without it nobody can say whose identity it is.
  if (out.ns.empty() || out.name.empty() || out.uid.empty() || out.service_account.empty())
    return std::nullopt;
  return out;
}

std::optional<PodFact> read_pod_json(std::string_view body) {
  auto root = kube::parse_json(body);
  if (!root) return std::nullopt;
  return read_pod(*kube::make_api_object(std::move(*root), "Pod", "v1"));
}

void PodIndex::count(const PodFact& pod, int by) {
  if (pod.finished || pod.node.empty()) return;
  auto place = places_.try_emplace({pod.node, pod.ns, pod.service_account}, 0).first;
  place->second += by;
  if (place->second == 0) places_.erase(place);
}

void PodIndex::upsert(PodFact pod) {
  remove(pod.ns, pod.name);
  count(pod, 1);
  auto key = std::pair(pod.ns, pod.name);
  pods_.emplace(std::move(key), std::move(pod));
}

void PodIndex::remove(const std::string& ns, const std::string& name) {
  auto found = pods_.find({ns, name});
  if (found == pods_.end()) return;
  count(found->second, -1);
  pods_.erase(found);
}

const PodFact* PodIndex::find(const std::string& ns, const std::string& name) const {
  auto found = pods_.find({ns, name});
  return found == pods_.end() ? nullptr : &found->second;
}

bool PodIndex::runs(const std::string& node, const std::string& ns,
                    const std::string& service_account) const {
  return places_.contains({node, ns, service_account});
}

}  // namespace nodemesh::controller

#include "translate/slice_publisher.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/log.h"

namespace nodemesh::translate {
namespace {

constexpr const char* kCollection = "/apis/nodemesh.dev/v1alpha1/workloadslices";
constexpr milliseconds kCoalesce{250};
constexpr milliseconds kFirstBackOff{500};
constexpr milliseconds kMaxBackOff{30'000};
constexpr size_t kMaxPast = 64;

// What the server answered. Content that cannot be read is taken as empty, so that it is replaced.
std::optional<HeldSlice> parse_reply(const std::string& body) {
  auto manifest = kube::parse_manifest(body, "the API server's answer");
  if (manifest.objects.size() != 1) return std::nullopt;
  const auto& object = *manifest.objects[0];
  HeldSlice held{.resource_version = object.resource_version};
  if (held.resource_version.empty()) return std::nullopt;
  kube::Problems problems;
  kube::Fields fields(&object.root, problems);
  fields.ignore({"apiVersion", "kind", "metadata"});
  auto decoded = read_workload_slice(object, fields, problems);
  if (!kube::has_error(problems)) held.spec = static_cast<const WorkloadSliceSpec&>(*decoded);
  return held;
}

SliceApi::Verb verb_of(const SliceChange& change) {
  switch (change.verb) {
    case SliceChange::Verb::create:
      return SliceApi::Verb::create;
    case SliceChange::Verb::replace:
      return SliceApi::Verb::replace;
    case SliceChange::Verb::remove:
      break;
  }
  return SliceApi::Verb::remove;
}

std::string body_of(const SliceChange& change, const std::string& node_uid) {
  if (change.verb != SliceChange::Verb::remove)
    return slice_json(change.spec, change.number, node_uid, change.resource_version);
  return nlohmann::json({{"apiVersion", "v1"},
                         {"kind", "DeleteOptions"},
                         {"preconditions", {{"resourceVersion", change.resource_version}}}})
      .dump();
}

}  // namespace

kube::ApiRequest slice_request(SliceApi::Verb verb, const std::string& name, std::string body) {
  using enum SliceApi::Verb;
  kube::ApiRequest request{.path = kCollection, .body = std::move(body)};
  if (verb != create) request.path += "/" + kube::percent_encode(name);
  request.verb = verb == get       ? kube::Verb::get
                 : verb == create  ? kube::Verb::post
                 : verb == replace ? kube::Verb::put
                                   : kube::Verb::remove;
  return request;
}

SlicePublisher::SlicePublisher(io::Reactor& reactor, SliceApi& api, std::string node)
    : reactor_(reactor), api_(api), node_(std::move(node)), timer_([this] {
        if (dirty_) flush();
      }) {}

bool SlicePublisher::settled() const {
  return sourced_ && !busy_ && !dirty_;
}

HeldSlices SlicePublisher::held() const {
  HeldSlices out;
  for (const auto& [number, known] : known_) out.emplace(number, known.held);
  return out;
}

void SlicePublisher::set_pods(std::vector<model::Shared<model::Workload>> pods) {
  pods_ = std::move(pods);
  sourced_ = true;
  if (!plan_slices(node_, pods_, held()).empty()) schedule();
}

void SlicePublisher::observe(const kube::Store& store) {
  if (const auto* node = store.find("Node", "", node_)) node_uid_ = node->object->uid;
  std::set<uint32_t> present;
  for (const auto& newest : store.newest("WorkloadSlice")) {
    auto number = slice_number(node_, newest.object.key.name);
    if (!number) continue;
    const std::string& version = newest.object.resource_version;
    auto buried = buried_.find(*number);
    if (buried != buried_.end() && buried->second.contains(version)) continue;
    present.insert(*number);
    Known& known = known_[*number];
    known.seen = true;
    if (version == known.held.resource_version || known.past.contains(version)) continue;
    // What cannot be read counts as empty, so that it is replaced.
    const auto* spec = static_cast<const WorkloadSliceSpec*>(newest.decoded);
    adopt(*number, {spec ? *spec : WorkloadSliceSpec(), version});
  }
  // One that the store has shown and shows no more was deleted; one that it has not shown yet is ours and
  // young.
  std::erase_if(known_,
                [&](const auto& entry) { return entry.second.seen && !present.contains(entry.first); });
  if (sourced_ && !plan_slices(node_, pods_, held()).empty()) schedule();
}

void SlicePublisher::adopt(uint32_t number, HeldSlice held) {
  Known& known = known_[number];
  if (!known.held.resource_version.empty()) known.past.insert(known.held.resource_version);
  if (known.past.size() > kMaxPast) known.past.clear();
  known.held = std::move(held);
}

void SlicePublisher::bury(uint32_t number) {
  auto known = known_.find(number);
  if (known == known_.end()) return;
  auto& buried = buried_[number];
  if (buried.size() > kMaxPast) buried.clear();
  buried.merge(known->second.past);
  buried.insert(known->second.held.resource_version);
  known_.erase(known);
}

void SlicePublisher::schedule() {
  dirty_ = true;
  if (!busy_ && !timer_.armed()) flush();
}

// Nothing can be written before the Node is known: a slice without an owner would outlive it.
void SlicePublisher::flush() {
  if (busy_ || !sourced_ || node_uid_.empty()) return;
  dirty_ = false;
  queue_ = plan_slices(node_, pods_, held());
  std::ranges::reverse(queue_);
  timer_.arm(reactor_, kCoalesce);
  next();
}

void SlicePublisher::next() {
  if (queue_.empty()) {
    busy_ = false;
    back_off_ = {};
    problem_.clear();
    if (dirty_ && !timer_.armed()) flush();
    return;
  }
  busy_ = true;
  SliceChange change = std::move(queue_.back());
  queue_.pop_back();
  std::string body = body_of(change, node_uid_);
  ++writes_;
  bytes_ += body.size();
  api_.call(verb_of(change), slice_name(node_, change.number), std::move(body),
            [this, alive = std::weak_ptr(alive_), change = std::move(change)](SliceApi::Reply reply) {
              if (!alive.expired()) on_reply(change, std::move(reply));
            });
}

void SlicePublisher::on_reply(const SliceChange& change, SliceApi::Reply reply) {
  bool removing = change.verb == SliceChange::Verb::remove;
  if (reply.status == 409) return read_again(change.number);
  if (reply.status == 404 && change.verb != SliceChange::Verb::create) {
    bury(change.number);
    dirty_ |= !removing;
    return next();
  }
  if (reply.status < 200 || reply.status >= 300) {
    return fail("WorkloadSlice " + slice_name(node_, change.number) + " cannot be written: " +
                (reply.status ? "status " + std::to_string(reply.status) + ", " : "") + reply.body);
  }
  if (removing) {
    bury(change.number);
    return next();
  }
  auto held = parse_reply(reply.body);
  if (!held) return read_again(change.number);
  held->spec = change.spec;
  adopt(change.number, std::move(*held));
  next();
}

// Somebody else wrote or deleted it: what is there now decides what is to be done.
void SlicePublisher::read_again(uint32_t number) {
  queue_.clear();
  api_.call(SliceApi::Verb::get, slice_name(node_, number), "",
            [this, alive = std::weak_ptr(alive_), number](SliceApi::Reply reply) {
              if (!alive.expired()) on_read(number, reply);
            });
}

void SlicePublisher::on_read(uint32_t number, const SliceApi::Reply& reply) {
  auto held = reply.status == 200 ? parse_reply(reply.body) : std::nullopt;
  if (held) {
    adopt(number, std::move(*held));
  } else if (reply.status == 404) {
    bury(number);
  } else {
    return fail("WorkloadSlice " + slice_name(node_, number) + " cannot be read: status " +
                std::to_string(reply.status));
  }
  dirty_ = true;
  next();
}

void SlicePublisher::fail(const std::string& why) {
  queue_.clear();
  busy_ = false;
  dirty_ = true;
  if (problem_ != why)
    log::warn(log::Component::config, "other nodes do not hear of pods here", {{"error", why}});
  problem_ = why;
  back_off_ = back_off_ == milliseconds(0) ? kFirstBackOff : std::min(back_off_ * 2, kMaxBackOff);
  timer_.arm(reactor_, back_off_);
}

}  // namespace nodemesh::translate

#include "controller/policy_statuses.h"

#include <algorithm>
#include <array>
#include <charconv>

#include "base/log.h"
#include "controller/time_text.h"
#include "kube/resources.h"

namespace nodemesh::controller {
namespace {

using Outcome = PacedWrites::Outcome;

// Those with a status for us to write, and those that theirs depends on.
constexpr std::array<std::string_view, 3> kJudged{"PeerAuthentication", "AuthorizationPolicy",
                                                  "DestinationRule"};
constexpr std::array<std::string_view, 2> kContext{"Service", "ConfigMap"};

bool is_one_of(std::span<const std::string_view> kinds, std::string_view kind) {
  return std::ranges::find(kinds, kind) != kinds.end();
}

PacedWrites::Key key_of(const kube::ObjectKey& key) {
  return {key.ns, key.kind, key.name};
}

int64_t generation_of(const kube::Object& object) {
  const kube::Node* metadata = object.root.find("metadata");
  const kube::Node* value = metadata ? metadata->find("generation") : nullptr;
  int64_t out = 0;
  if (value) std::from_chars(value->text.data(), value->text.data() + value->text.size(), out);
  return out;
}

std::string path_of(const kube::Object& object) {
  kube::Resource resource{
      object.key.group, {object.version}, kube::plural_of(object.key.kind), object.key.kind};
  return resource.object_path(kube::percent_encode(object.key.ns), kube::percent_encode(object.key.name));
}

}  // namespace

PolicyStatuses::PolicyStatuses(io::Reactor& reactor, const Clock& clock, Api& api, EventPoster& events,
                               translate::TranslateOptions options, PacedWrites::Settings pace)
    : clock_(clock),
      api_(api),
      events_(events),
      options_(std::move(options)),
      writes_(reactor, clock, pace, [this](const auto& key, auto done) { write(key, std::move(done)); }) {}

void PolicyStatuses::note(const kube::Object& object) {
  bool judged = is_one_of(kJudged, object.key.kind);
  dirty_ |= judged || is_one_of(kContext, object.key.kind);
  if (!judged) return;
  Fact& fact = facts_[key_of(object.key)];
  fact.path = path_of(object);
  fact.regarding = {object.key.group + "/" + object.version, object.key.kind, object.key.ns, object.key.name,
                    object.uid};
  // What was judged was another.
  if (std::exchange(fact.generation, generation_of(object)) != fact.generation) fact.wanted.reset();
  fact.written = read_condition(object.root, kAccepted);
}

void PolicyStatuses::forget(const kube::ObjectKey& key) {
  dirty_ |= is_one_of(kContext, key.kind) || is_one_of(kJudged, key.kind);
  facts_.erase(key_of(key));
  writes_.forget(key_of(key));
}

void PolicyStatuses::update(const kube::Store& store) {
  if (!std::exchange(dirty_, false)) return;
  for (const auto& status : translate::policy_statuses(store, options_)) {
    PacedWrites::Key key{status.ns, status.kind, status.name};
    auto found = facts_.find(key);
    if (found == facts_.end()) continue;
    Fact& fact = found->second;
    fact.wanted = accepted_condition(status, fact.generation);
    if (fact.wanted != fact.written)
      writes_.want(key);
    else
      writes_.forget(key);
  }
}

void PolicyStatuses::write(const PacedWrites::Key& key, PacedWrites::Done done) {
  auto found = facts_.find(key);
  if (found == facts_.end() || !found->second.wanted || found->second.wanted == found->second.written)
    return done(Outcome::nothing);
  api_.call(
      kube::Verb::get, found->second.path, {},
      [this, alive = std::weak_ptr(alive_), key, done = std::move(done)](const ApiReply& reply) mutable {
        if (!alive.expired()) on_read(key, reply, std::move(done));
      });
}

void PolicyStatuses::on_read(const PacedWrites::Key& key, const ApiReply& reply, PacedWrites::Done done) {
  auto found = facts_.find(key);
  if (found == facts_.end() || reply.not_found()) return done(Outcome::nothing);
  Json object = parse_object(reply.body);
  if (!reply.ok() || object.is_null()) return done(failed(reply));
  Fact& fact = found->second;
  const Json* generation = find(object, {"metadata", "generation"});
  // Newer than what was judged: the watch will bring it.
  bool newer = generation && generation->is_number_integer() && *generation != fact.generation;
  if (newer || text_at(object, {"metadata", "uid"}) != fact.regarding.uid) return done(Outcome::nothing);
  fact.written = read_condition(object, kAccepted);
  if (fact.written == fact.wanted) return done(Outcome::nothing);
  put(key, fact, object, std::move(done));
}

void PolicyStatuses::put(const PacedWrites::Key& key, const Fact& fact, const Json& object,
                         PacedWrites::Done done) {
  Json body = {
      {"metadata", {{"resourceVersion", text_at(object, {"metadata", "resourceVersion"})}}},
      {"status",
       {{"conditions", conditions_with(object, kAccepted, *fact.wanted, write_time(clock_.wall()))}}}};
  api_.patch(Api::Patch::merge, fact.path + "/status", dump(body),
             [this, alive = std::weak_ptr(alive_), key, said = *fact.wanted,
              done = std::move(done)](const ApiReply& reply) mutable {
               if (!alive.expired()) on_written(key, said, reply, std::move(done));
             });
}

void PolicyStatuses::on_written(const PacedWrites::Key& key, const Condition& said, const ApiReply& reply,
                                PacedWrites::Done done) {
  if (reply.not_found()) return done(Outcome::nothing);
  if (!reply.ok()) return done(failed(reply));
  trouble_.clear();
  auto found = facts_.find(key);
  if (found == facts_.end()) return done(Outcome::done);
  found->second.written = said;
  if (!said.holds) events_.warn(found->second.regarding, said.reason, "Validate", said.message);
  done(found->second.wanted == said ? Outcome::done : Outcome::again);
}

PacedWrites::Outcome PolicyStatuses::failed(const ApiReply& reply) {
  if (!reply.conflict() && reply.error != trouble_) {
    trouble_ = reply.error;
    log::warn(log::Component::controller, "the status of a policy cannot be written", {{"why", trouble_}});
  }
  return Outcome::again;
}

}  // namespace nodemesh::controller

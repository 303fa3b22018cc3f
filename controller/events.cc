#include "controller/events.h"

#include <fmt/format.h>

#include "base/log.h"
#include "controller/time_text.h"

namespace nodemesh::controller {
namespace {

constexpr int kInWindow = 20, kOfOneNamespace = 10;
constexpr auto kWindow = seconds(10);
constexpr auto kHour = seconds(3600);  // how long the API server keeps Events by default
constexpr size_t kMaxNote = 1024;      // events.k8s.io/v1 `note`
constexpr size_t kMaxName = 253 - 17;

// FNV-1a, so that all versions and replicas give one Event one name.
uint64_t hash_of(std::string_view text) {
  uint64_t hash = 0xcbf29ce484222325;
  for (unsigned char c : text) hash = (hash ^ c) * 0x100000001b3;
  return hash;
}

}  // namespace

void EventPoster::warn(const Regarding& about, const std::string& reason, const std::string& action,
                       const std::string& note) {
  std::string ns = about.ns.empty() ? "default" : about.ns;
  std::string name = fmt::format("{}.{:016x}", about.name.substr(0, kMaxName),
                                 hash_of(about.uid + '\n' + reason + '\n' + note));
  if (!may_post(ns, ns + "/" + name)) return;
  Json regarding = {{"apiVersion", about.api_version}, {"kind", about.kind}, {"name", about.name}};
  if (!about.ns.empty()) regarding["namespace"] = about.ns;
  if (!about.uid.empty()) regarding["uid"] = about.uid;
  Json event = {{"apiVersion", "events.k8s.io/v1"},
                {"kind", "Event"},
                {"metadata", {{"name", name}, {"namespace", ns}}},
                {"eventTime", write_time(clock_.wall())},
                {"reportingController", "nodemesh.dev/controller"},
                {"reportingInstance", instance_},
                {"action", action},
                {"reason", reason},
                {"regarding", std::move(regarding)},
                {"note", utf8_prefix(note, kMaxNote)},
                {"type", "Warning"}};
  api_.call(kube::Verb::post, "/apis/events.k8s.io/v1/namespaces/" + kube::percent_encode(ns) + "/events",
            dump(event), [this, alive = std::weak_ptr(alive_)](const ApiReply& reply) {
              if (alive.expired()) return;
              bool good = reply.ok() || reply.conflict();
              if (!good && !complained_)
                log::warn(log::Component::controller, "an Event cannot be written", {{"why", reply.error}});
              complained_ = !good;
            });
}

bool EventPoster::may_post(const std::string& ns, const std::string& path) {
  auto now = clock_.now();
  if (now - hour_ >= kHour || said_.size() >= 10'000) {
    said_.clear();
    hour_ = now;
  }
  if (said_.contains(path)) return false;
  if (now - window_ >= kWindow) {
    window_ = now;
    in_window_ = 0;
    of_namespace_.clear();
  }
  int& of_this = of_namespace_[ns];
  if (in_window_ >= kInWindow || of_this >= kOfOneNamespace) {
    ++left_out_;
    return false;
  }
  ++in_window_;
  ++of_this;
  said_.insert(path);
  return true;
}

}  // namespace nodemesh::controller

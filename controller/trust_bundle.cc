#include "controller/trust_bundle.h"

#include <fmt/format.h>

#include "base/log.h"

namespace nodemesh::controller {
namespace {

constexpr auto kKey = "root-cert.pem";
constexpr auto kMark = "app.kubernetes.io/managed-by";
constexpr auto kUs = "nodemesh-controller";

}  // namespace

void TrustBundlePublisher::begin() {
  leads_ = true;
  refresh();
}

void TrustBundlePublisher::end() {
  leads_ = false;
  timer_.cancel();
  trouble_.clear();
}

void TrustBundlePublisher::refresh() {
  if (!leads_ || authority_.trust_bundle_pem().empty()) return;
  if (asking_) {
    again_ = true;
    return;
  }
  asking_ = true;
  api_.call(kube::Verb::get, path() + "/" + settings_.name, {},
            [this, alive = std::weak_ptr<bool>(alive_)](const ApiReply& reply) {
              if (!alive.expired()) on_read(reply);
            });
}

void TrustBundlePublisher::on_read(const ApiReply& reply) {
  if (!leads_) return settle({});
  if (reply.not_found()) {
    return write(
        kube::Verb::post,
        {{"apiVersion", "v1"},
         {"kind", "ConfigMap"},
         {"metadata", {{"name", settings_.name}, {"namespace", settings_.ns}, {"labels", {{kMark, kUs}}}}},
         {"data", {{kKey, authority_.trust_bundle_pem()}}}});
  }
  Json map = parse_object(reply.body);
  if (!reply.ok() || map.is_null()) return settle("it cannot be read: " + reply.error);
  if (text_at(map, {"metadata", "labels", kMark}) != kUs) {
    return settle(
        fmt::format("it is somebody else's (no label {}={}) and is left alone; remove it or choose "
                    "another --trust-bundle",
                    kMark, kUs));
  }
  if (text_at(map, {"data", kKey}) == authority_.trust_bundle_pem()) return settle({});
  map["data"] = {{kKey, authority_.trust_bundle_pem()}};
  write(kube::Verb::put, std::move(map));
}

void TrustBundlePublisher::write(kube::Verb verb, Json map) {
  std::string where = path() + (verb == kube::Verb::put ? "/" + settings_.name : "");
  api_.call(
      verb, std::move(where), dump(map), [this, alive = std::weak_ptr<bool>(alive_)](const ApiReply& reply) {
        if (alive.expired()) return;
        again_ = again_ || reply.conflict();
        if (reply.ok())
          log::info(log::Component::controller, "trust bundle published", {{"configmap", settings_.name}});
        settle(reply.ok() || reply.conflict() ? "" : "it cannot be written: " + reply.error);
      });
}

void TrustBundlePublisher::settle(std::string trouble) {
  asking_ = false;
  if (!trouble.empty()) trouble = fmt::format("ConfigMap {}/{}: {}", settings_.ns, settings_.name, trouble);
  if (trouble != trouble_ && !trouble.empty()) log::error(log::Component::controller, trouble);
  // What became of a write that was under way when we lost the lease is the next leader's to mend.
  trouble_ = leads_ ? std::move(trouble) : std::string();
  if (!leads_) return;
  if (std::exchange(again_, false)) return refresh();
  timer_.arm(reactor_, settings_.refresh);
}

}  // namespace nodemesh::controller

#include "controller/lease.h"

#include "base/log.h"
#include "controller/time_text.h"

namespace nodemesh::controller {
namespace {

constexpr auto kGroup = "/apis/coordination.k8s.io/v1/namespaces/";

int64_t integer_at(const Json& from, std::initializer_list<std::string_view> path, int64_t otherwise) {
  const Json* at = find(from, path);
  return at != nullptr && at->is_number_integer() ? at->get<int64_t>() : otherwise;
}

}  // namespace

Lease::Lease(io::Reactor& reactor, const Clock& clock, Api& api, Settings settings, OnChange on_change)
    : reactor_(reactor),
      clock_(clock),
      api_(api),
      settings_(std::move(settings)),
      on_change_(std::move(on_change)),
      random_(settings_.seed != 0 ? settings_.seed : std::random_device()()) {}

std::string Lease::path() const {
  return kGroup + settings_.ns + "/leases";
}

void Lease::attempt() {
  if (stopped_) return;
  api_.call(kube::Verb::get, path() + "/" + settings_.name, {},
            [this, alive = std::weak_ptr<bool>(alive_)](ApiReply reply) {
              if (!alive.expired()) on_read(std::move(reply));
            });
}

void Lease::on_read(ApiReply reply) {
  if (stopped_) return;
  if (reply.not_found()) return create();
  Json lease = parse_object(reply.body);
  if (!reply.ok() || lease.is_null()) {
    log::warn(log::Component::controller, "the lease cannot be read",
              {{"lease", settings_.name},
               {"error", reply.error.empty() ? "the answer is no object" : reply.error}});
    return rest();
  }
  observe(lease);
  bool ours = holder_ == settings_.identity;
  if (!ours && !holder_.empty() && !runs_out(lease)) {
    settle(false, {});
    return rest();
  }
  take(std::move(lease));
}

// Notes what was read, and when by our clock it became so.
void Lease::observe(const Json& lease) {
  const Json* spec = find(lease, {"spec"});
  std::string text = spec != nullptr ? dump(*spec) : std::string();
  if (text != seen_ || !seen_at_) seen_at_ = clock_.now();
  seen_ = std::move(text);
  holder_ = text_at(lease, {"spec", "holderIdentity"});
}

bool Lease::runs_out(const Json& lease) const {
  auto duration = seconds(integer_at(lease, {"spec", "leaseDurationSeconds"}, settings_.duration.count()));
  return clock_.now() - *seen_at_ >= duration;
}

Json Lease::spec(const Json& before, bool taking) const {
  std::string now = write_time(clock_.wall());
  Json out = before.is_object() ? before : Json::object();
  int64_t transitions = integer_at(out, {"leaseTransitions"}, 0);
  out["holderIdentity"] = settings_.identity;
  out["leaseDurationSeconds"] = settings_.duration.count();
  out["renewTime"] = now;
  if (taking) out["acquireTime"] = now;
  out["leaseTransitions"] = taking && !before.is_null() ? transitions + 1 : transitions;
  return out;
}

void Lease::create() {
  Json lease = {{"apiVersion", "coordination.k8s.io/v1"},
                {"kind", "Lease"},
                {"metadata", {{"name", settings_.name}, {"namespace", settings_.ns}}},
                {"spec", spec({}, true)}};
  write(kube::Verb::post, path(), std::move(lease));
}

void Lease::take(Json lease) {
  bool ours = holder_ == settings_.identity;
  const Json* before = find(lease, {"spec"});
  lease["spec"] = spec(before != nullptr ? *before : Json::object(), !ours);
  write(kube::Verb::put, path() + "/" + settings_.name, std::move(lease));
}

void Lease::write(kube::Verb verb, std::string where, Json lease) {
  api_.call(verb, std::move(where), dump(lease),
            [this, alive = std::weak_ptr<bool>(alive_), asked = clock_.now()](const ApiReply& reply) {
              if (!alive.expired()) on_written(asked, reply);
            });
}

void Lease::on_written(Monotonic::time_point asked, const ApiReply& reply) {
  if (stopped_) return;
  if (reply.ok()) {
    lease_ = parse_object(reply.body);
    observe(lease_);
    // Others count from when the server wrote it, which may be as early as we asked.
    if (clock_.now() - asked < settings_.renew_deadline) settle(true, asked);
  } else if (!reply.conflict()) {  // a conflict: another was faster, and the next read shows who
    log::warn(log::Component::controller, "the lease cannot be written",
              {{"lease", settings_.name}, {"error", reply.error}});
  }
  rest();
}

void Lease::settle(bool renewed, Monotonic::time_point at) {
  if (renewed) {
    renewed_at_ = at;
    auto left = settings_.renew_deadline - (clock_.now() - at);
    deadline_.arm(reactor_,
                  std::chrono::ceil<milliseconds>(std::max<Monotonic::duration>(left, milliseconds(0))));
  }
  if (renewed == leads_) return;
  leads_ = renewed;
  log::info(log::Component::controller, leads_ ? "leading" : "no longer leading",
            {{"lease", settings_.name}, {"holder", holder_}});
  on_change_(leads_);
}

void Lease::check_deadline() {
  if (!leads_) return;
  auto since = clock_.now() - renewed_at_;
  if (since >= settings_.renew_deadline) return settle(false, {});
  deadline_.arm(reactor_, std::chrono::ceil<milliseconds>(settings_.renew_deadline - since));
}

void Lease::rest() {
  double more = std::uniform_real_distribution<double>(0, 0.2)(random_);
  timer_.arm(reactor_, settings_.retry + milliseconds(static_cast<int64_t>(
                                             static_cast<double>(settings_.retry.count()) * more)));
}

void Lease::release(Released done) {
  stopped_ = true;
  timer_.cancel();
  deadline_.cancel();
  if (!leads_ || !lease_.is_object()) return done();
  leads_ = false;
  on_change_(false);
  give_up(std::move(lease_), true, std::move(done));
}

void Lease::give_up(Json lease, bool again, Released done) {
  Json& spec = lease["spec"];
  spec["holderIdentity"] = "";
  spec["leaseDurationSeconds"] = 1;
  spec["renewTime"] = write_time(clock_.wall());
  api_.call(kube::Verb::put, path() + "/" + settings_.name, dump(lease),
            [this, alive = std::weak_ptr<bool>(alive_), again,
             done = std::move(done)](const ApiReply& reply) mutable {
              if (alive.expired()) return;
              if (again && reply.conflict()) return read_and_give_up(std::move(done));
              if (!reply.ok() && !reply.conflict())
                log::warn(log::Component::controller, "the lease cannot be given up",
                          {{"lease", settings_.name}, {"error", reply.error}});
              done();
            });
}

// A renewal that was under way when we stopped has changed the resourceVersion since.
void Lease::read_and_give_up(Released done) {
  api_.call(
      kube::Verb::get, path() + "/" + settings_.name, {},
      [this, alive = std::weak_ptr<bool>(alive_), done = std::move(done)](const ApiReply& reply) mutable {
        if (alive.expired()) return;
        Json lease = parse_object(reply.body);
        if (!reply.ok() || text_at(lease, {"spec", "holderIdentity"}) != settings_.identity) return done();
        give_up(std::move(lease), false, std::move(done));
      });
}

}  // namespace nodemesh::controller

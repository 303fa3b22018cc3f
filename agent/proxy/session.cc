#include "proxy/session.h"

#include "proxy/worker.h"

namespace nodemesh::proxy {

void SessionList::push(Session& session) {
  session.previous_ = last_;
  session.next_ = nullptr;
  (last_ != nullptr ? last_->next_ : first_) = &session;
  last_ = &session;
  size_ += 1;
}

void SessionList::erase(Session& session) {
  (session.previous_ != nullptr ? session.previous_->next_ : first_) = session.next_;
  (session.next_ != nullptr ? session.next_->previous_ : last_) = session.previous_;
  session.next_ = session.previous_ = nullptr;
  size_ -= 1;
}

Session::Session(Worker& worker, PodState& pod, telemetry::Direction direction)
    : worker_(worker),
      pod_(pod),
      record_(worker.recorder, direction),
      idle_limit_(worker.options.idle.connection) {
  pod_.sessions.push(*this);
}

Session::~Session() {
  if (ended_) return;
  // Only at the end of the process: nobody is left to tell.
  pod_.sessions.erase(*this);
  record_.fail(Reason::SHUTDOWN);
  record_.complete();
}

void Session::end(const Error& error) {
  if (std::exchange(ended_, true)) return;
  if (error.reason != Reason::NONE) record_.fail(error);
  record_.complete();
  pod_.sessions.erase(*this);
  worker_.bury(std::unique_ptr<Session>(this));
}

Result<> Session::note(const Admission& admission) {
  for (const auto& match : admission.dry_run) {
    const auto& origin = match.policy->origin;
    worker_.recorder.metrics.policy_dry_run(origin.ns + "/" + origin.name,
                                            match.policy->action == model::Action::allow);
  }
  if (!admission.policy.empty()) record_.decided_by(admission.policy);
  if (!admission.allow) return fail(admission.reason, admission.detail);
  return {};
}

void Session::enforce(const Admission& admission) {
  if (admission.allow) return;
  if (!admission.policy.empty()) record_.decided_by(admission.policy);
  abort({Reason::POLICY_REVOKED, "now denied: " + admission.detail});
}

void Session::leave() {
  ended_ = true;
  record_.discard();
  pod_.sessions.erase(*this);
  worker_.bury(std::unique_ptr<Session>(this));
}

}  // namespace nodemesh::proxy

#include "proxy/overload.h"

#include <algorithm>
#include <functional>
#include <utility>
#include <variant>
#include <vector>

#include "base/log.h"
#include "io/socket.h"
#include "proxy/inbound.h"
#include "proxy/worker.h"

namespace nodemesh::proxy {
namespace {

// New connections are refused above this share of the descriptors, and one pod may hold half of them.
constexpr size_t kRefusePercent = 90, kLastPercent = 97;
// A connection on which nothing moved for so long goes before one that is in use.
constexpr auto kIdle = seconds(5);
// Connections looked at for one to end; those in use go to the end of their list, so the next look sees
// others.
constexpr size_t kLooks = 64;
// Silence is found this part of its limit too late at most, and no connection is looked at more often.
constexpr int kSweepsPerLimit = 16;

// The pod that has most of what `size` counts.
template <class Pods, class Size>
PodState* largest(const Pods& pods, Size size) {
  PodState* most = nullptr;
  for (const auto& [cookie, pod] : pods) {
    if (most == nullptr || size(*pod) > size(*most)) most = pod.get();
  }
  return most;
}

// Idle if there is one within reach, else the one idle for longest.
Session* to_end(SessionList& sessions, Monotonic::time_point now) {
  Session* longest = nullptr;
  for (size_t looks = std::min(kLooks, sessions.size()); looks > 0; --looks) {
    Session* session = sessions.first();
    if (now - session->active_at() >= kIdle) return session;
    if (longest == nullptr || session->active_at() < longest->active_at()) longest = session;
    sessions.erase(*session);
    sessions.push(*session);
  }
  return longest;
}

}  // namespace

milliseconds IdleTimes::of_stream(tls::Alpn peer) const {
  return peer == tls::Alpn::nm1 ? milliseconds(0) : stream;
}

Overload::Overload(Worker& worker, size_t held_limit)
    : held(worker.reactor, held_limit, [this] { relieve(); }), worker_(worker) {}

Reason Overload::check(const PodState& pod, int fd) {
  auto used = static_cast<size_t>(fd);
  size_t limit = worker_.options.descriptor_limit * kRefusePercent / 100;
  size_t share = limit / (2 * worker_.control.worker_count());
  if (used >= limit) {
    shed(share);
    // The last tenth is for pods that hold little: the room made for them comes a moment later.
    bool modest =
        pod.connections() <= share / 4 && used < worker_.options.descriptor_limit * kLastPercent / 100;
    return modest ? Reason::NONE : Reason::OUT_OF_DESCRIPTORS;
  }
  // The fair share binds only when descriptors are getting short and others want some.
  bool scarce = used >= limit / 2 && worker_.pods().size() > 1;
  return scarce && pod.connections() > share ? Reason::OVER_LIMIT : Reason::NONE;
}

void Overload::refuse(const PodState& pod, nm_listener kind, Accepted accepted, Reason reason) {
  bool outbound = kind == NM_LISTENER_OUTBOUND;
  telemetry::Record record(worker_.recorder,
                           outbound ? telemetry::Direction::outbound : telemetry::Direction::inbound);
  if (!outbound)
    record.path = kind == NM_LISTENER_HBONE ? telemetry::Path::hbone : telemetry::Path::plaintext;
  record.src = accepted.peer;
  record.dst = accepted.local;
  (outbound ? record.source : record.destination) = worker_.labels.workload(pod.workload);
  record.fail(reason);
  record.complete();
  io::close_with_reset(accepted.fd);
  refused_ += 1;
}

void Overload::starved() {
  worker_.recorder.metrics.accepts_starved.add();
  starved_ += 1;
}

// Workers see only their own connections, so all are asked.
void Overload::shed(size_t share) {
  if (shed_here(share)) return;
  for (size_t i = 0; i < worker_.control.worker_count(); ++i) {
    if (i == worker_.options.number) continue;
    Worker& other = worker_.control.worker(i);
    other.post([&other, share] { other.overload.shed_here(share); });
  }
}

bool Overload::shed_here(size_t share) {
  PodState* most = largest(worker_.pods(), [](const PodState& pod) { return pod.connections(); });
  if (most == nullptr || most->connections() <= share) return false;
  // Tunnels that carry nothing first: their peers can open others when they need them.
  for (auto& [key, tunnel] : most->tunnels) {
    auto& connection = tunnel->connection();
    if (!connection.ready() || connection.draining() || connection.session().open_streams() > 0) continue;
    connection.drain();
    shed_ += 1;
    return true;
  }
  Session* session = to_end(most->sessions, worker_.reactor.now());
  if (session == nullptr) return false;
  session->abort({Reason::OUT_OF_DESCRIPTORS, "closed to make room: its pod has most connections"});
  shed_ += 1;
  return true;
}

void Overload::tick() {
  end_idle();
  tell();
}

void Overload::end_idle() {
  const auto& idle = worker_.options.idle;
  if (idle.connection.count() == 0 && idle.stream.count() == 0) return;
  auto shortest = std::min(idle.connection.count() > 0 ? idle.connection : milliseconds::max(),
                           idle.stream.count() > 0 ? idle.stream : milliseconds::max());
  auto now = worker_.reactor.now();
  if (now - swept_ < shortest / kSweepsPerLimit) return;
  swept_ = now;
  for (auto& [cookie, pod] : worker_.pods()) {
    for (Session* session = pod->sessions.first(); session != nullptr;) {
      Session* next = session->next();
      auto limit = session->idle_limit();
      if (limit.count() > 0 && now - session->active_at() >= limit) {
        session->abort({Reason::IDLE_TIMEOUT,
                        "no byte in either direction for " + std::to_string(limit.count()) + " ms"});
      }
      session = next;
    }
  }
}

void Overload::tell() {
  if (refused_ + shed_ + starved_ == 0) return;
  PodState* most = largest(worker_.pods(), [](const PodState& pod) { return pod.connections(); });
  log::warn(log::Component::proxy,
            "descriptors are short: raise the limit of open files, or find who takes them",
            {{"limit", worker_.options.descriptor_limit},
             {"refused", refused_},
             {"closed", shed_},
             {"waiting", starved_},
             {"largest", most != nullptr ? most->info.ns + "/" + most->info.name : std::string()},
             {"connections", most != nullptr ? most->connections() : 0}});
  refused_ = shed_ = starved_ = 0;
}

// Down to seven eighths, so that the next byte does not ask again.
void Overload::relieve() {
  size_t goal = held.limit() - held.limit() / 8;
  size_t excess = held.bytes() - std::min(held.bytes(), goal);
  std::vector<PodState*> pods;
  for (const auto& [cookie, pod] : worker_.pods()) pods.push_back(pod.get());
  std::ranges::sort(pods, std::greater<>(), [](const PodState* pod) { return pod->held_bytes.bytes(); });
  for (PodState* pod : pods) {
    if (excess == 0) return;
    excess -= std::min(excess, relieve(*pod, excess));
  }
}

// Ends those of a pod's connections that hold most; returns how much they held. Tunnels let go of it at the
// end of the turn.
size_t Overload::relieve(PodState& pod, size_t excess) {
  using Holder = std::variant<Session*, http::HboneConnection*>;
  std::vector<std::pair<size_t, Holder>> holders;
  auto add = [&](auto* holder) {
    if (size_t bytes = holder->held(); bytes > 0) holders.emplace_back(bytes, holder);
  };
  for (Session* session = pod.sessions.first(); session != nullptr; session = session->next()) add(session);
  for (auto& [key, tunnel] : pod.tunnels) add(&tunnel->connection());
  for (auto* connection : worker_.pool->connections_of(pod.info.cookie)) add(connection);
  std::ranges::sort(holders, std::greater<>(), &std::pair<size_t, Holder>::first);
  const Error why{Reason::OVER_LIMIT, "closed to free memory: its pod holds most of what peers do not read"};
  size_t freed = 0;
  for (auto& [bytes, holder] : holders) {
    if (freed >= excess) break;
    if (auto** session = std::get_if<Session*>(&holder)) (*session)->abort(why);
    if (auto** connection = std::get_if<http::HboneConnection*>(&holder)) (*connection)->close(why);
    freed += bytes;
  }
  return freed;
}

}  // namespace nodemesh::proxy

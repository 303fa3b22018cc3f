// What the warden says, and what it is asked: pods, listeners, sockets, keys. Control thread.
#include "base/log.h"
#include "identity/vault.h"
#include "io/socket.h"
#include "proxy/control.h"

namespace nodemesh::proxy {

void Control::ask_sockets(size_t worker, uint64_t cookie, warden::SocketKind kind, uint32_t count) {
  mailbox_.post([this, order = SocketOrder{worker, cookie, kind}, count] {
    auto request = link_.want_sockets(order.cookie, order.kind, count);
    if (request) return orders_.add(*request, order);
    give_sockets(order, {}, Reason::NO_SOCKET);
  });
}

void Control::on_sockets(const warden::Sockets& answer, std::vector<Fd> sockets) {
  auto order = orders_.take(answer.request);
  bool fits =
      order && order->cookie == answer.cookie && order->kind == static_cast<warden::SocketKind>(answer.kind);
  if (!fits) {
    log::warn(log::Component::warden, "SOCKETS answers no request: its sockets are closed",
              {{"request", answer.request}, {"cookie", answer.cookie}, {"kind", answer.kind}});
    sockets.clear();
  }
  if (order)
    give_sockets(*order, std::move(sockets), fits ? static_cast<Reason>(answer.reason) : Reason::NO_SOCKET);
}

void Control::give_sockets(const SocketOrder& order, std::vector<Fd> sockets, Reason reason) {
  Worker& asker = *workers_[order.worker];
  asker.post([&asker, order, sockets = std::move(sockets), reason]() mutable {
    asker.add_sockets(order.cookie, order.kind, std::move(sockets), reason);
  });
}

void Control::on_warden_connected(const warden::Welcome& welcome) {
  forsaken_.cancel();
  standby_ = (welcome.flags & warden::Welcome::kStandby) != 0;
  if (standby_)
    return log::info(log::Component::warden, "the warden stands by: another agent serves the node");
  log::info(log::Component::warden, "connected to the warden", {{"generation", welcome.generation}});
  hands_over_ = (welcome.flags & warden::Welcome::kHandsOver) != 0;
  keys_due_.schedule(reactor_);
  update_slices();
}

void Control::on_keys(Fd keys) {
  // Only a fresh process needs them, even if the CA was faster: it may have answered for some identities
  // only.
  if (!keys || pods_known_) return;
  std::vector<std::string> dropped;
  auto contents = identity::read_vault(keys.get(), &dropped);
  if (!contents) {
    return log::warn(log::Component::identity, "keys of the process before cannot be used",
                     {{"error", contents.error().message}});
  }
  for (const auto& why : dropped)
    log::warn(log::Component::identity, "a kept key cannot be used", {{"error", why}});
  credentials_.adopt(*contents);
  if (contents->ticket_keys != nullptr) {
    ticket_keys_ = contents->ticket_keys;
    publish_ticket_keys();
  }
  log::info(log::Component::identity, "took over keys", {{"certificates", contents->credentials.size()}});
}

void Control::on_pod_add(warden::Pod pod, warden::PodListeners listeners) {
  auto& announced = pods_[pod.cookie];
  announced = {.pod = pod, .waiting = std::move(listeners)};
  for (auto& worker : workers_) worker->post([&to = *worker, pod] { to.add_pod(pod, {}, {}); });
  open_when_known(announced);
}

// A worker that accepts may at once hand over to another, or go to another pod of this node: so nobody
// accepts before all workers have the pod, nor, in a new process, before they have all pods and know who they
// are. Until then connections wait in the backlog.
void Control::open_when_known(Announced& announced) {
  if (pods_known_ && snapshot_->generation() > 0) open(announced);
}

void Control::open_known() {
  if (!pods_known_ || snapshot_->generation() == 0) return;
  for (auto& [cookie, announced] : pods_) open(announced);
  if (taken_up_ || taken_up_after_ > 0) return;
  ask_kernel_stats();
  taken_up_after_ = stats_owed_;
}

void Control::open(Announced& announced) {
  warden::PodListeners listeners = std::exchange(announced.waiting, {});
  const warden::Pod& pod = announced.pod;
  if (listeners[0].empty()) return;
  std::vector<uint16_t> ports;
  for (size_t kind = 0; kind < listeners.size(); ++kind) {
    for (const Fd& fd : listeners[kind]) announced.ports[kind].push_back(io::local_address(fd.get()).port);
    ports.insert(ports.end(), announced.ports[kind].begin(), announced.ports[kind].end());
  }
  for (size_t i = 0; i < workers_.size(); ++i) {
    std::vector<Fd> mine;
    for (auto& kind : listeners) {
      if (i < kind.size()) mine.push_back(std::move(kind[i]));
    }
    workers_[i]->post([&to = *workers_[i], pod, mine = std::move(mine), ports]() mutable {
      to.add_pod(pod, std::move(mine), std::move(ports));
    });
  }
  link_.takeover_ready(pod.cookie);
  log::info(log::Component::proxy, "pod in the mesh", {{"namespace", pod.ns}, {"pod", pod.name}});
}

void Control::on_pod_update(warden::Pod pod) {
  auto& announced = pods_[pod.cookie];
  announced.pod = pod;
  if (!pod.enrolled) announced = {.pod = pod, .closing = workers_.size()};
  for (auto& worker : workers_) worker->post([&to = *worker, pod] { to.update_pod(pod); });
  if (!pod.enrolled)
    log::info(log::Component::proxy, "pod left the mesh", {{"namespace", pod.ns}, {"pod", pod.name}});
  if (handover_timer_.armed() && !has_enrolled_pods()) drain(kDrainLimit);
}

void Control::on_pod_gone(uint64_t cookie) {
  auto found = pods_.find(cookie);
  if (found != pods_.end()) {
    log::info(log::Component::proxy, "pod gone",
              {{"namespace", found->second.pod.ns}, {"pod", found->second.pod.name}});
  }
  pods_[cookie] = {.closing = workers_.size()};
  for (auto& worker : workers_) worker->post([&to = *worker, cookie] { to.remove_pod(cookie); });
}

void Control::pod_closed(size_t, uint64_t cookie) {
  mailbox_.post([this, cookie] {
    auto found = pods_.find(cookie);
    if (found == pods_.end() || found->second.closing == 0) return;
    if (--found->second.closing > 0) return;
    link_.pod_gone_ack(cookie);
    pods_.erase(found);
  });
}

void Control::on_kernel_stats(const warden::KernelStats& stats) {
  metrics_.set_kernel(std::span(stats.drops).first(NM_REASON_COUNT),
                      std::span(stats.counters).first(NM_COUNT_COUNTERS));
  if (stats_owed_ > 0) --stats_owed_;
  if (taken_up_after_ > 0 && --taken_up_after_ == 0) taken_up_ = true;
}

void Control::on_snapshot_sent() {
  pods_known_ = true;
  open_known();
  keys_due_.schedule(reactor_);
}

}  // namespace nodemesh::proxy

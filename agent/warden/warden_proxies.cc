// Listeners and proxies: who holds which descriptor. Everything a proxy says is checked against what the
// warden itself announced; a proxy that breaks the protocol loses its channel, nothing else.
#include <fcntl.h>
#include <netinet/in.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>

#include "base/log.h"
#include "warden/warden.h"

#ifndef F_GET_SEALS
#define F_GET_SEALS 1034
#endif

namespace nodemesh::warden {
namespace {

constexpr size_t kMaxProxies = 8;        // generations that drain, and then some
constexpr size_t kMaxReturned = 1024;    // pods per node are fewer
constexpr size_t kMaxLag = 256;          // messages a proxy may leave unread before its wishes are refused
constexpr uint32_t kMaxOrdered = 4096;   // sockets on their way to one proxy
constexpr auto kLookAgain = seconds(1);  // for the proxy's cgroup: it reads much
constexpr off_t kMaxKeys = 16 << 20;
constexpr int kNeededSeals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE;

template <class T>
T option(int fd, int level, int name) {
  T value{};
  socklen_t length = sizeof value;
  return ::getsockopt(fd, level, name, &value, &length) == 0 ? value : T{};
}

// Is it one of the listening TCP sockets of that namespace? A proxy could return anything.
bool is_listener_of(int fd, uint64_t cookie) {
  auto made_in = kernel::netns_cookie(fd);
  return made_in && *made_in == cookie && option<int>(fd, SOL_SOCKET, SO_ACCEPTCONN) == 1 &&
         option<int>(fd, SOL_SOCKET, SO_PROTOCOL) == IPPROTO_TCP &&
         option<int>(fd, SOL_SOCKET, SO_REUSEPORT) == 0;  // one that others may join is none of ours
}

bool same_sockets(const PodListeners& one, const PodListeners& other) {
  for (size_t kind = 0; kind < one.size(); ++kind) {
    if (one[kind].size() != other[kind].size()) return false;
    for (size_t i = 0; i < one[kind].size(); ++i) {
      if (option<uint64_t>(one[kind][i].get(), SOL_SOCKET, SO_COOKIE) !=
          option<uint64_t>(other[kind][i].get(), SOL_SOCKET, SO_COOKIE)) {
        return false;
      }
    }
  }
  return true;
}

PodListeners group(std::vector<Fd> descriptors) {
  PodListeners out;
  size_t workers = descriptors.size() / NM_LISTENER_COUNT;
  for (size_t i = 0; i < descriptors.size(); ++i) out[i / workers].push_back(std::move(descriptors[i]));
  return out;
}

// Ordered by kind, then worker.
std::vector<int> numbers_of(const PodListeners& listeners) {
  std::vector<int> numbers;
  for (const auto& kind : listeners) std::ranges::transform(kind, std::back_inserter(numbers), &Fd::get);
  return numbers;
}

}  // namespace

Warden::Proxy* Warden::find_proxy(const ProxyChannel& channel) {
  auto found =
      std::ranges::find_if(proxies_, [&](const auto& proxy) { return proxy->channel.get() == &channel; });
  return found == proxies_.end() ? nullptr : found->get();
}

Warden::Proxy* Warden::find_proxy(uint64_t id) {
  auto found = std::ranges::find_if(proxies_, [&](const auto& proxy) { return proxy->id == id; });
  return found == proxies_.end() ? nullptr : found->get();
}

bool Warden::has_serving_proxy() const {
  return std::ranges::any_of(
      proxies_, [](const auto& proxy) { return proxy->phase == Proxy::Phase::ready && !proxy->draining; });
}

void Warden::accept_proxy(Fd socket, pid_t peer) {
  if (proxies_.size() >= kMaxProxies) {
    log::warn(log::Component::warden, "refused a proxy: too many are connected", {{"pid", peer}});
    return;
  }
  auto proxy = std::make_unique<Proxy>();
  proxy->id = next_proxy_id_++;
  proxies_.push_back(std::move(proxy));
  ProxyChannelEvents& events = *this;
  proxies_.back()->channel = std::make_unique<ProxyChannel>(reactor_, events, std::move(socket), peer);
}

void Warden::refuse(Proxy& proxy, std::string why) {
  proxy.channel->fail_later(Error{Reason::INTERNAL, std::move(why)});
}

void Warden::on_proxy_closed(ProxyChannel& channel, const Error& why) {
  Proxy* proxy = find_proxy(channel);
  if (proxy == nullptr) return;
  bool ready = proxy->phase == Proxy::Phase::ready, served = ready && !proxy->draining;
  if (ready || std::exchange(refusal_, why.message) != why.message)
    log::info(log::Component::warden, "proxy left", {{"pid", channel.peer()}, {"reason", why.message}});
  for (auto& [cookie, leaving] : leaving_) leaving.waiting.erase(&channel);
  std::erase_if(proxies_, [&](const auto& one) { return one.get() == proxy; });
  if (served && !has_serving_proxy() && !retired_) orphaned_.arm(reactor_, kOrphaned);
}

// Nobody came back in time: without entries the kernel refuses, or passes, as its flag says.
void Warden::clear_listeners() {
  if (has_serving_proxy()) return;
  log::warn(log::Component::warden,
            "no proxy for 5 s: captured connections fail (or pass, with --fail-open)");
  std::set<uint64_t> cookies;
  for (const auto& pod : capture_.pods()) cookies.insert(pod.netns_cookie);
  for (uint64_t cookie : cookies) check(capture_.clear_listeners(cookie), "withdrawing listeners");
  for (auto& [uid, pod] : pods_) pod.published = false;
}

void Warden::on_proxy_message(ProxyChannel& channel, ProxyMessage message, std::vector<Fd> descriptors) {
  Proxy* proxy = find_proxy(channel);
  if (proxy == nullptr) return;
  if (auto* hello = std::get_if<Hello>(&message)) return on_hello(*proxy, *hello);
  if (proxy->phase == Proxy::Phase::hello) return refuse(*proxy, "the proxy spoke before HELLO");
  if (std::get_if<StoreKeys>(&message)) return on_keys(*proxy, std::move(descriptors[0]));
  if (proxy->phase == Proxy::Phase::returning) {
    if (auto* back = std::get_if<ReturnListeners>(&message))
      return on_returned(*proxy, *back, std::move(descriptors));
    if (std::get_if<ReturnDone>(&message)) return on_return_done(*proxy);
    return refuse(*proxy, "the proxy spoke before RETURN_DONE");
  }
  if (auto* want = std::get_if<WantSockets>(&message)) return on_want_sockets(*proxy, *want);
  if (auto* ready = std::get_if<TakeoverReady>(&message)) return on_takeover_ready(*proxy, ready->cookie);
  if (auto* gone = std::get_if<PodGoneAck>(&message)) return on_gone_ack(*proxy, gone->cookie);
  if (std::get_if<WantKernelStats>(&message)) return send_kernel_stats(*proxy);
  refuse(*proxy, "the proxy returned listeners after RETURN_DONE");
}

void Warden::on_hello(Proxy& proxy, const Hello& hello) {
  if (proxy.phase != Proxy::Phase::hello) return refuse(proxy, "the proxy said HELLO twice");
  if (hello.workers > options_.max_workers) {
    return refuse(proxy, "the proxy has " + std::to_string(hello.workers) + " workers, the warden allows " +
                             std::to_string(options_.max_workers) + ": give both the same --workers");
  }
  proxy.draining = (hello.flags & Hello::kDraining) != 0;
  // A pod has one set of listeners, for as many workers as all have that serve it.
  for (const auto& other : proxies_) {
    if (proxy.draining || other->draining || other->phase == Proxy::Phase::hello) continue;
    if (other->workers == hello.workers) continue;
    return refuse(proxy, "the proxy has " + std::to_string(hello.workers) +
                             " workers and another that serves has " + std::to_string(other->workers) +
                             ": give both the same --workers, or start it when the other has left");
  }
  proxy.workers = hello.workers;
  proxy.phase = Proxy::Phase::returning;
  proxy_moved_ = true;
  follow_proxy();
}

// A proxy whose container was made anew is in another cgroup: the kernel must know its sockets by that one,
// and what the opener makes belongs there.
void Warden::follow_proxy() {
  if (!options_.find_proxy || !proxy_moved_ || reactor_.now() - looked_ < kLookAgain) return;
  looked_ = reactor_.now();
  std::string now = options_.find_proxy();
  if (now.empty()) return;
  auto id = kernel::cgroup_id(now);
  if (!id) return;
  proxy_moved_ = false;
  if (opener_.cgroup() != now) check(opener_.move(now), "moving the opener to the proxy's cgroup");
  if (now == proxy_cgroup_) return;
  check(capture_.add_agent(*id), "naming the proxy's cgroup");
  if (auto old = std::exchange(agent_, *id); old != *id)
    check(capture_.remove_agent(old), "forgetting the proxy's old cgroup");
  log::info(log::Component::warden, "the proxy has another cgroup", {{"cgroup", now}});
  proxy_cgroup_ = std::move(now);
}

// As long as the opener is in it, the runtime cannot remove the cgroup of a container that has ended.
void Warden::leave_dead_proxy() {
  if (!options_.find_proxy || !proxies_.empty() || opener_.cgroup() != proxy_cgroup_) return;
  if (has_others(proxy_cgroup_, opener_.child())) return;
  auto moved = opener_.move(options_.own_cgroup);
  check(moved, "moving the opener out of the proxy's cgroup");
  // The runtime may have tried in vain meanwhile, and does so once only.
  if (moved) ::rmdir(proxy_cgroup_.c_str());
}

void Warden::on_returned(Proxy& proxy, const ReturnListeners& returned, std::vector<Fd> descriptors) {
  if (proxy.draining) return refuse(proxy, "the proxy returned listeners although it drains");
  if (proxy.returned.size() >= kMaxReturned) return refuse(proxy, "the proxy returned too many listeners");
  if (descriptors.size() != size_t{proxy.workers} * NM_LISTENER_COUNT) {
    return refuse(proxy, "the proxy returned listeners for another number of workers");
  }
  for (const Fd& fd : descriptors) {
    if (!is_listener_of(fd.get(), returned.cookie)) {
      return refuse(proxy, "the proxy returned a descriptor that is no listener of that pod");
    }
  }
  proxy.returned.insert_or_assign(returned.cookie, group(std::move(descriptors)));
}

void Warden::on_return_done(Proxy& proxy) {
  proxy.phase = Proxy::Phase::ready;
  proxy.snapshot_due = true;
  refusal_.clear();
  log::info(log::Component::warden, "proxy connected",
            {{"pid", proxy.channel->peer()}, {"workers", proxy.workers}});
  proxy.channel->send(Welcome{.generation = options_.generation,
                              .flags = (options_.fail_open ? Welcome::kFailOpen : 0) |
                                       (options_.strict ? Welcome::kStrict : 0) |
                                       (options_.hands_over ? Welcome::kHandsOver : 0)});
  send_keys(proxy);
  if (!proxy.draining) orphaned_.cancel();
  if (sourced_) join(proxy);
}

// Compares what the proxy has with the pods that there are. What an earlier warden announced is kept
// untouched until the source has spoken, which may take long: the API server can be away.
void Warden::join(Proxy& proxy) {
  proxy.joined = true;
  if (proxy.draining) {
    announce_to_draining();
    return finish_snapshots();
  }
  workers_ = proxy.workers;
  for (auto& [uid, pod] : pods_) {
    if (!pod.netns) continue;
    if (auto back = proxy.returned.find(pod.netns->cookie);
        back != proxy.returned.end() && pod.workers() == 0 && !pod.opening) {
      pod.listeners = std::move(back->second);
      proxy.told.insert(pod.netns->cookie);
      proxy.channel->send(PodAdd{to_record(describe(pod))});
    } else if (pod.workers() == workers_) {
      announce(proxy, pod);
    } else {
      ensure_listeners(pod);
    }
  }
  // What it still has of pods that are no longer there.
  for (auto& [cookie, listeners] : proxy.returned) {
    if (find_by_cookie(cookie) == nullptr) proxy.channel->send(PodGone{cookie});
  }
  proxy.returned.clear();
  finish_snapshots();
}

// It may go on with the pods that it knows. Nobody accepts for them by that.
void Warden::announce_to_draining() {
  for (auto& proxy : proxies_) {
    if (!proxy->joined || !proxy->draining) continue;
    for (auto& [uid, pod] : pods_) {
      if (pod.netns && proxy->told.insert(pod.netns->cookie).second)
        proxy->channel->send(PodAdd{to_record(describe(pod))});
    }
  }
}

// Tells one proxy of a pod whose listeners are there.
void Warden::announce(Proxy& proxy, LocalPod& pod) {
  uint64_t cookie = pod.netns->cookie;
  proxy.told.insert(cookie);
  auto back = proxy.returned.find(cookie);
  if (back != proxy.returned.end() && same_sockets(back->second, pod.listeners)) {
    proxy.channel->send(PodAdd{to_record(describe(pod))});
    return;
  }
  proxy.channel->send(PodAdd{to_record(describe(pod))}, numbers_of(pod.listeners));
}

void Warden::ensure_listeners(LocalPod& pod) {
  if (workers_ == 0 || pod.opening || pod.workers() == workers_) return;
  pod.opening = true;
  SocketOrder order{.netns = pod.netns->fd.get(), .ipv6 = pod.netns->ipv6, .count = workers_};
  opener_.open_listeners(order, [this, uid = pod.wanted->uid, cookie = pod.netns->cookie](auto made) {
    on_listeners(uid, cookie, std::move(made));
  });
}

void Warden::on_listeners(const std::string& uid, uint64_t cookie, Result<std::vector<Fd>> made) {
  auto found = pods_.find(uid);
  if (found == pods_.end() || !found->second.netns || found->second.netns->cookie != cookie)
    return finish_snapshots();
  LocalPod& pod = found->second;
  pod.opening = false;
  if (!made) {
    complain(pod, "no listeners: " + made.error().message);  // reconcile asks again
    return finish_snapshots();
  }
  if (made->size() != size_t{workers_} * NM_LISTENER_COUNT) return ensure_listeners(pod);
  pod.listeners = group(std::move(*made));
  for (auto& proxy : proxies_) {
    if (proxy->joined && !proxy->draining) announce(*proxy, pod);
  }
  finish_snapshots();
}

// A listener of ours that is still in force serves a pod that the successor does not have yet.
bool Warden::is_superseded() const {
  return capture_.taken_by_another() && std::ranges::none_of(pods_, [&](const auto& entry) {
           const LocalPod& pod = entry.second;
           if (!pod.netns || !pod.published) return false;
           auto now = capture_.listener(pod.netns->cookie, NM_LISTENER_OUTBOUND, 0);
           return now ==
                  option<uint64_t>(pod.listeners[NM_LISTENER_OUTBOUND][0].get(), SOL_SOCKET, SO_COOKIE);
         });
}

void Warden::finish_snapshots() {
  if (!sourced_ || std::ranges::any_of(pods_, [](const auto& entry) { return entry.second.opening; })) return;
  for (auto& proxy : proxies_) {
    if (!proxy->joined || !std::exchange(proxy->snapshot_due, false)) continue;
    proxy->channel->send(SnapshotSent{});
  }
}

void Warden::on_takeover_ready(Proxy& proxy, uint64_t cookie) {
  LocalPod* pod = find_by_cookie(cookie);
  // A pod that has just left is no fault of the proxy.
  if (pod == nullptr || pod->workers() == 0 || !proxy.told.contains(cookie) || proxy.draining) return;
  std::vector<int> listeners = numbers_of(pod->listeners);
  if (auto set = capture_.set_listeners(cookie, listeners); !set) return complain(*pod, set.error().message);
  pod->published = true;
  if (!pod->live) return;
  auto on = capture_.set_pod(cookie, pod->addresses, NM_ENROL_ON);
  if (!on) return complain(*pod, on.error().message);
  pod->captured = true;
  pod->live = false;
  follow_cgroup(*pod, true);
}

void Warden::on_gone_ack(Proxy& proxy, uint64_t cookie) {
  auto leaving = leaving_.find(cookie);
  if (leaving == leaving_.end()) return;
  leaving->second.waiting.erase(proxy.channel.get());
  finish_leaving();
}

void Warden::on_want_sockets(Proxy& proxy, const WantSockets& want) {
  Sockets reply{.cookie = want.cookie, .kind = want.kind, .request = proxy.channel->request()};
  LocalPod* pod = find_by_cookie(want.cookie);
  if (pod == nullptr || !proxy.told.contains(want.cookie)) {
    reply.reason = NM_REASON_POD_GONE;
  } else if (proxy.channel->queued() > kMaxLag ||
             proxy.ordered + want.count + proxy.channel->queued_descriptors() > kMaxOrdered) {
    reply.reason = NM_REASON_OVER_LIMIT;
  }
  if (reply.reason != NM_REASON_NONE) return proxy.channel->send(reply);
  proxy.ordered += want.count;
  SocketOrder order{.netns = pod->netns->fd.get(),
                    .ipv6 = pod->netns->ipv6,
                    .source_kept = describe(*pod).source_kept,
                    .count = want.count};
  opener_.open_sockets(order, static_cast<SocketKind>(want.kind),
                       [this, id = proxy.id, reply, count = want.count](auto made) {
                         if (Proxy* asker = find_proxy(id)) {
                           asker->ordered -= count;
                           reply_sockets(*asker, reply, std::move(made));
                         }
                       });
}

void Warden::reply_sockets(Proxy& proxy, Sockets reply, Result<std::vector<Fd>> made) {
  std::vector<int> numbers;
  if (!made) {
    log::warn(log::Component::warden, "cannot make sockets in a pod", {{"reason", made.error().message}});
    reply.reason = NM_REASON_NO_SOCKET;
  } else if (find_by_cookie(reply.cookie) == nullptr) {
    reply.reason = NM_REASON_POD_GONE;  // or the proxy would keep the namespace alive
  } else {
    std::ranges::transform(*made, std::back_inserter(numbers), &Fd::get);
  }
  reply.count = static_cast<uint32_t>(numbers.size());
  proxy.channel->send(reply, numbers);
}

void Warden::on_keys(Proxy& proxy, Fd keys) {
  struct stat file{};
  int seals = ::fcntl(keys.get(), F_GET_SEALS);
  if (seals < 0 || (seals & kNeededSeals) != kNeededSeals || ::fstat(keys.get(), &file) < 0 ||
      file.st_size > kMaxKeys) {
    return refuse(proxy, "the proxy's keys are not in a sealed memfd of at most 16 MiB");
  }
  keys_ = std::move(keys);
}

void Warden::send_keys(Proxy& proxy) {
  int keys = keys_.get();
  proxy.channel->send(Keys{}, keys_ ? std::span<const int>(&keys, 1) : std::span<const int>());
}

void Warden::send_kernel_stats(Proxy& proxy) {
  if (proxy.channel->queued() > kMaxLag) return;
  kernel::Counted counted = capture_.read_counters();
  KernelStats stats;
  std::copy_n(counted.drops.begin(), std::min(counted.drops.size(), KernelStats::kReasons), stats.drops);
  std::copy_n(counted.counters.begin(), std::min(counted.counters.size(), KernelStats::kCounters),
              stats.counters);
  proxy.channel->send(stats);
}

}  // namespace nodemesh::warden

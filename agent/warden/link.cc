// The proxy's end of the channel.
#include <fcntl.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>

#include "base/log.h"
#include "warden/channel.h"

namespace nodemesh::warden {
namespace {

constexpr milliseconds kRetry{100};

Result<> check_peer(int socket, uid_t expected) {
  ucred peer{};
  socklen_t length = sizeof peer;
  if (::getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &length) < 0) return fail_errno("SO_PEERCRED");
  if (peer.uid != expected) {
    return fail("the warden's socket is served by uid " + std::to_string(peer.uid) + ", not by uid " +
                std::to_string(expected));
  }
  return {};
}

}  // namespace

PodRecord to_record(const Pod& pod) {
  PodRecord record;
  record.cookie = pod.cookie;
  record.flags = (pod.enrolled ? PodRecord::kEnrolled : 0) | (pod.source_kept ? PodRecord::kSourceKept : 0) |
                 (pod.ipv6 ? PodRecord::kIpv6 : 0);
  record.address_count = static_cast<uint32_t>(std::min<size_t>(pod.addresses.size(), NM_POD_ADDRESSES));
  for (uint32_t i = 0; i < record.address_count; ++i) {
    std::ranges::copy(pod.addresses[i].bytes, record.addresses[i]);
  }
  bool fit =
      copy_text(record.uid, pod.uid) && copy_text(record.ns, pod.ns) && copy_text(record.name, pod.name);
  if (!fit) std::abort();  // translation refuses such a pod
  return record;
}

Pod from_record(const PodRecord& record) {
  Pod pod{.cookie = record.cookie,
          .uid = record.uid,
          .ns = record.ns,
          .name = record.name,
          .addresses = {},
          .enrolled = (record.flags & PodRecord::kEnrolled) != 0,
          .source_kept = (record.flags & PodRecord::kSourceKept) != 0,
          .ipv6 = (record.flags & PodRecord::kIpv6) != 0};
  for (uint32_t i = 0; i < record.address_count; ++i) {
    Addr addr;
    std::ranges::copy(record.addresses[i], addr.bytes.begin());
    pod.addresses.push_back(addr);
  }
  return pod;
}

WardenLink::WardenLink(io::Reactor& reactor, WardenLinkEvents& events, std::string path, uint32_t workers,
                       uid_t warden_uid)
    : reactor_(reactor),
      events_(events),
      path_(std::move(path)),
      workers_(workers),
      warden_uid_(warden_uid),
      retry_([this] { connect(); }),
      failing_([this] { close(Error(failure_)); }) {  // close() sets failure_
  retry_.arm(reactor_, milliseconds(0));
}

WardenLink::~WardenLink() {
  if (socket_) reactor_.remove(socket_.fd(), *this, true);
}

void WardenLink::connect() {
  if (auto opened = open_socket(); !opened) {
    close(opened.error());
    return;
  }
  if (auto greeted = greet(); !greeted) close(greeted.error());
}

Result<> WardenLink::open_socket() {
  sockaddr_un address{.sun_family = AF_UNIX};
  if (path_.size() >= sizeof address.sun_path) return fail("socket path " + path_ + " is too long");
  std::ranges::copy(path_, address.sun_path);
  Fd fd(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!fd) return fail_errno("socket(AF_UNIX)");
  if (::connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) < 0)
    return fail_errno(path_);
  if (auto ok = check_peer(fd.get(), warden_uid_); !ok) return ok;
  PacketSocket socket(std::move(fd));
  if (auto added = reactor_.add(socket.fd(), *this); !added) return added;
  socket_ = std::move(socket);
  return {};
}

// Tells a new warden everything its predecessor knew.
Result<> WardenLink::greet() {
  const Hello hello{.workers = workers_, .flags = draining_ ? Hello::kDraining : 0};
  if (auto sent = socket_.send(hello); !sent) return sent;
  for (const auto& [cookie, known] : known_) {
    if (known.listeners[0].empty()) continue;
    std::vector<int> descriptors;
    for (const auto& kind : known.listeners) descriptors.insert(descriptors.end(), kind.begin(), kind.end());
    if (auto sent = socket_.send(ReturnListeners{.cookie = cookie}, descriptors); !sent) return sent;
  }
  if (keys_) {
    int keys = keys_.get();
    if (auto sent = socket_.send(StoreKeys{}, {&keys, 1}); !sent) return sent;
  }
  return socket_.send(ReturnDone{});
}

void WardenLink::close(const Error& why) {
  if (socket_) {
    reactor_.remove(socket_.fd(), *this, true);
    socket_ = PacketSocket();
  }
  retry_.arm(reactor_, kRetry);
  bool told = std::exchange(failure_, why).message == why.message && !welcomed_;
  welcomed_ = false;
  if (!told) events_.on_warden_closed(why);
}

template <class Message>
bool WardenLink::send(const Message& message, std::span<const int> descriptors) {
  if (!socket_) return false;
  auto sent = socket_.send(message, descriptors);
  if (sent) return true;
  failure_ = std::move(sent.error());
  failing_.schedule(reactor_);
  return false;
}

std::optional<uint32_t> WardenLink::want_sockets(uint64_t cookie, SocketKind kind, uint32_t count) {
  if (!welcomed_ || !send(WantSockets{.cookie = cookie, .kind = static_cast<uint32_t>(kind), .count = count}))
    return std::nullopt;
  return socket_.last_sequence();
}

void WardenLink::takeover_ready(uint64_t cookie) {
  auto known = known_.find(cookie);
  if (known == known_.end() || draining_) return;
  known->second.ready = true;
  if (welcomed_) send(TakeoverReady{.cookie = cookie});
}

void WardenLink::pod_gone_ack(uint64_t cookie) {
  if (welcomed_) send(PodGoneAck{.cookie = cookie});
}

void WardenLink::drain() {
  draining_ = true;
  for (auto& [cookie, known] : known_) known = {};
}

void WardenLink::store_keys(int memfd) {
  int copy = ::fcntl(memfd, F_DUPFD_CLOEXEC, 0);
  if (copy < 0) {
    log::warn(log::Component::identity, "cannot keep keys for the next proxy process", {{"errno", errno}});
    return;
  }
  keys_.reset(copy);
  if (welcomed_) send(StoreKeys{}, {&copy, 1});
}

bool WardenLink::want_kernel_stats() {
  return welcomed_ && send(WantKernelStats{});
}

void WardenLink::on_events(uint32_t events) {
  if (events & EPOLLOUT) {
    if (auto flushed = socket_.flush(); !flushed) return close(flushed.error());
  }
  while (socket_) {
    auto packet = socket_.receive();
    if (!packet) return close(packet.error());
    if (packet->bytes.empty()) return;
    auto message = decode_from_warden(packet->bytes, packet->descriptors.size(), socket_.next_expected());
    if (!message) return close(message.error());
    handle(std::move(*message), std::move(packet->descriptors));
  }
}

void WardenLink::handle(WardenMessage message, std::vector<Fd> descriptors) {
  if (auto* welcome = std::get_if<Welcome>(&message)) {
    welcomed_ = true;
    failure_ = {};
    return events_.on_warden_connected(*welcome);
  }
  if (!welcomed_) return close(Error{Reason::INTERNAL, "the warden spoke before WELCOME"});
  if (auto* add = std::get_if<PodAdd>(&message)) return handle_pod_add(*add, std::move(descriptors));
  if (auto* update = std::get_if<PodUpdate>(&message)) {
    Pod pod = from_record(update->pod);
    if (!pod.enrolled) known_.erase(pod.cookie);
    return events_.on_pod_update(std::move(pod));
  }
  if (auto* gone = std::get_if<PodGone>(&message)) {
    known_.erase(gone->cookie);
    return events_.on_pod_gone(gone->cookie);
  }
  if (auto* sockets = std::get_if<Sockets>(&message))
    return events_.on_sockets(*sockets, std::move(descriptors));
  if (std::get_if<Keys>(&message)) {
    if (keys_) return;  // ours, on their way back from a new warden
    if (descriptors.empty()) return events_.on_keys(Fd());
    keys_.reset(::fcntl(descriptors[0].get(), F_DUPFD_CLOEXEC, 0));
    return events_.on_keys(std::move(descriptors[0]));
  }
  if (auto* stats = std::get_if<KernelStats>(&message)) return events_.on_kernel_stats(*stats);
  if (std::get_if<Superseded>(&message)) return events_.on_superseded();
  events_.on_snapshot_sent();
}

void WardenLink::handle_pod_add(const PodAdd& add, std::vector<Fd> descriptors) {
  Pod pod = from_record(add.pod);
  auto known = known_.find(pod.cookie);
  if (draining_) {  // a pod that it never served is none of its business
    if (known != known_.end()) events_.on_pod_update(std::move(pod));
    return;
  }
  if (descriptors.empty()) {
    if (known == known_.end())
      return close(Error{Reason::INTERNAL, "POD_ADD without listeners for an unknown pod"});
    if (known->second.ready) send(TakeoverReady{.cookie = pod.cookie});
    return events_.on_pod_update(std::move(pod));
  }
  size_t workers = descriptors.size() / NM_LISTENER_COUNT;
  if (workers != workers_)
    return close(Error{Reason::INTERNAL, "POD_ADD has listeners for another number of workers"});
  PodListeners listeners;
  Known fresh;
  for (size_t i = 0; i < descriptors.size(); ++i) {
    fresh.listeners[i / workers].push_back(descriptors[i].get());
    listeners[i / workers].push_back(std::move(descriptors[i]));
  }
  known_[pod.cookie] = std::move(fresh);
  events_.on_pod_add(std::move(pod), std::move(listeners));
}

}  // namespace nodemesh::warden

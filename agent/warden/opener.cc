#include "warden/opener.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/capability.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include <algorithm>
#include <cerrno>

#include "base/log.h"
#include "warden/privilege.h"

namespace nodemesh::warden {
namespace {

constexpr uint32_t kListeners = 100;  // what: kListeners or a SocketKind
constexpr milliseconds kRespawn{100};

struct OpenRequest {  // + the namespace's descriptor
  static constexpr uint16_t kType = 1;
  uint32_t what = 0;
  uint32_t count = 0;
  uint32_t ipv6 = 0;
  uint32_t source_kept = 0;
};

struct OpenReply {  // + descriptors, or none and a message; the child's first reply says that it is ready
  static constexpr uint16_t kType = 2;
  uint32_t failed = 0;
  char message[508] = {};
};

template <class Message>
bool read(const PacketSocket::Packet& packet, Message& out) {
  if (packet.bytes.size() != sizeof(Header) + sizeof out) return false;
  std::memcpy(&out, packet.bytes.data() + sizeof(Header), sizeof out);
  return true;
}

OpenReply refusal(std::string_view text) {
  OpenReply reply{.failed = 1};
  // A text that the field cannot hold whole loses its end.
  if (!copy_text(reply.message, text.substr(0, std::min(text.find('\0'), sizeof reply.message - 1))))
    ::_exit(1);
  return reply;
}

std::string text_of(const OpenReply& reply) {
  return {reply.message, ::strnlen(reply.message, sizeof reply.message)};
}

// 0: the caller.
Result<> put_into(const std::string& cgroup, pid_t pid) {
  if (cgroup.empty()) return {};
  const std::string text = std::to_string(pid);
  Fd procs(::open((cgroup + "/cgroup.procs").c_str(), O_WRONLY | O_CLOEXEC));
  if (!procs || ::write(procs.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size())) {
    return fail_errno("joining the proxy's cgroup (--proxy-cgroup) " + cgroup);
  }
  return {};
}

Result<std::vector<Fd>> serve(const PacketSocket::Packet& packet) {
  OpenRequest request;
  if (!read(packet, request) || packet.descriptors.size() != 1)
    return fail("the opener got a malformed order");
  SocketOrder order{.netns = packet.descriptors[0].get(),
                    .ipv6 = request.ipv6 != 0,
                    .source_kept = request.source_kept != 0,
                    .count = request.count};
  if (request.what == kListeners) return make_listeners(order);
  return make_sockets(order, static_cast<SocketKind>(request.what));
}

void answer(PacketSocket& socket, const Result<std::vector<Fd>>& made) {
  Result<> sent;
  if (made) {
    std::vector<int> numbers;
    std::ranges::transform(*made, std::back_inserter(numbers), &Fd::get);
    sent = socket.send(OpenReply{}, numbers);
  } else {
    sent = socket.send(refusal(made.error().message));
  }
  if (!sent) ::_exit(1);
}

// The child's whole life. It ends with the warden: end of file, or the signal at its parent's death.
[[noreturn]] void run_child(Fd channel, const std::string& cgroup) {
  PacketSocket socket(std::move(channel));
  auto joined = put_into(cgroup, 0);
  if (joined) joined = keep_capabilities({CAP_SYS_ADMIN, CAP_NET_ADMIN});
  answer(socket, joined ? Result<std::vector<Fd>>(std::vector<Fd>()) : std::unexpected(joined.error()));
  if (!joined) ::_exit(1);
  for (;;) {
    pollfd wait{socket.fd(), static_cast<short>(POLLIN | (socket.queued() > 0 ? POLLOUT : 0)), 0};
    if (::poll(&wait, 1, -1) < 0 && errno != EINTR) ::_exit(1);
    if ((wait.revents & POLLOUT) && !socket.flush()) ::_exit(1);
    if (socket.queued() > 0) continue;  // the warden is behind: make no more than it takes
    auto packet = socket.receive();
    if (!packet) ::_exit(0);
    if (!packet->bytes.empty()) answer(socket, serve(*packet));
  }
}

// In the child, before anything else: only the standard streams stay open, and the channel under number 3.
Fd isolate(Fd channel, pid_t parent) {
  ::prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (::getppid() != parent) ::_exit(0);
  ::prctl(PR_SET_NAME, "nm-opener");
  sigset_t none;
  sigemptyset(&none);
  ::sigprocmask(SIG_SETMASK, &none, nullptr);
  for (int number : {SIGINT, SIGTERM, SIGHUP}) ::signal(number, SIG_IGN);
  if (channel.get() != 3) {
    ::dup3(channel.get(), 3, O_CLOEXEC);
    (void)channel.release();
  }
  ::close_range(4, ~0U, 0);
  return channel.get() == 3 ? std::move(channel) : Fd(3);
}

}  // namespace

Opener::Opener(io::Reactor& reactor, std::string cgroup, milliseconds limit)
    : reactor_(reactor),
      cgroup_(std::move(cgroup)),
      limit_(limit),
      replacing_([this] { replace(failure_); }),
      retry_([this] { respawn(); }),
      silence_([this] {
        replace(Error{Reason::INTERNAL, fmt::format("no answer within {} ms", limit_.count())});
      }) {}

Result<std::unique_ptr<Opener>> Opener::start(io::Reactor& reactor, std::string cgroup, milliseconds limit) {
  std::unique_ptr<Opener> opener(new Opener(reactor, std::move(cgroup), limit));
  auto socket = opener->spawn();
  if (!socket) return std::unexpected(std::move(socket.error()));
  pollfd wait{socket->fd(), POLLIN, 0};
  if (::poll(&wait, 1, static_cast<int>(limit.count())) != 1)
    return fail(fmt::format("the opener process did not start within {} ms", limit.count()));
  auto packet = socket->receive();
  if (!packet) return std::unexpected(std::move(packet.error()));
  if (auto ready = opener->take_ready(*packet); !ready) return std::unexpected(std::move(ready.error()));
  if (auto watched = opener->watch(std::move(*socket)); !watched)
    return std::unexpected(std::move(watched.error()));
  return opener;
}

Opener::~Opener() {
  end_child();
  reap(0);
}

Result<> Opener::move(const std::string& cgroup) {
  cgroup_ = cgroup;
  return child_ > 0 ? put_into(cgroup_, child_) : Result<>();
}

Result<PacketSocket> Opener::spawn() {
  int pair[2];
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) < 0)
    return fail_errno("socketpair");
  Fd ours(pair[0]), theirs(pair[1]);
  pid_t self = ::getpid();
  pid_t child = ::fork();
  if (child < 0) return fail_errno("starting the opener process");
  if (child == 0) run_child(isolate(std::move(theirs), self), cgroup_);
  child_ = child;
  ready_ = false;
  return PacketSocket(std::move(ours));
}

Result<> Opener::watch(PacketSocket socket) {
  if (auto added = reactor_.add(socket.fd(), *this); !added) return added;
  socket_ = std::move(socket);
  return {};
}

// The child's first word.
Result<> Opener::take_ready(const PacketSocket::Packet& packet) {
  OpenReply ready;
  if (!read(packet, ready)) return fail("the opener process did not start");
  if (ready.failed) return fail(text_of(ready));
  ready_ = true;
  return {};
}

// Nothing here waits for the child, old or new: the warden's heartbeat goes on.
void Opener::respawn() {
  if (!reap(WNOHANG)) return retry_.arm(reactor_, kRespawn);
  auto socket = spawn();
  if (!socket) return replace(socket.error());
  if (auto watched = watch(std::move(*socket)); !watched) return replace(watched.error());
  silence_.arm(reactor_, limit_);
}

void Opener::end_child() {
  silence_.cancel();
  if (socket_) reactor_.remove(socket_.fd(), *this, true);
  socket_ = PacketSocket();
  if (child_ > 0) ::kill(child_, SIGKILL);
}

// Whether the child, killed before, is no more.
bool Opener::reap(int options) {
  if (child_ <= 0) return true;
  pid_t ended;
  while ((ended = ::waitpid(child_, nullptr, options)) < 0 && errno == EINTR) {
  }
  if (ended != 0) child_ = -1;
  return ended != 0;
}

void Opener::replace(const Error& why) {
  log::warn(log::Component::warden, "the opener process is gone, starting another",
            {{"reason", why.message}});
  end_child();
  retry_.arm(reactor_, kRespawn);
  for (auto& done : std::exchange(pending_, {})) done(std::unexpected(Error{Reason::NO_SOCKET, why.message}));
}

void Opener::open_listeners(const SocketOrder& order, Done done) {
  send(order, kListeners, std::move(done));
}

void Opener::open_sockets(const SocketOrder& order, SocketKind kind, Done done) {
  send(order, static_cast<uint32_t>(kind), std::move(done));
}

void Opener::send(const SocketOrder& order, uint32_t what, Done done) {
  if (!socket_) {
    reactor_.post([done = std::move(done)]() mutable {
      done(fail(Reason::NO_SOCKET, "the opener process is being replaced"));
    });
    return;
  }
  if (!silence_.armed()) silence_.arm(reactor_, limit_);
  pending_.push_back(std::move(done));
  OpenRequest request{
      .what = what, .count = order.count, .ipv6 = order.ipv6, .source_kept = order.source_kept};
  if (auto sent = socket_.send(request, {&order.netns, 1}); !sent) {
    failure_ = std::move(sent.error());
    replacing_.schedule(reactor_);
  }
}

void Opener::on_events(uint32_t events) {
  if (events & EPOLLOUT) {
    if (auto flushed = socket_.flush(); !flushed) return replace(flushed.error());
  }
  while (socket_) {
    auto packet = socket_.receive();
    if (!packet) return replace(packet.error());
    if (packet->bytes.empty()) return;
    take(std::move(*packet));
  }
}

void Opener::take(PacketSocket::Packet packet) {
  if (!ready_) {
    if (auto ready = take_ready(packet); !ready) return replace(ready.error());
    return expect_answer();
  }
  OpenReply reply;
  if (!read(packet, reply) || pending_.empty()) return replace(Error{Reason::INTERNAL, "malformed answer"});
  Done done = std::move(pending_.front());
  pending_.pop_front();
  expect_answer();
  if (reply.failed)
    done(fail(Reason::NO_SOCKET, text_of(reply)));
  else
    done(std::move(packet.descriptors));
}

void Opener::expect_answer() {
  if (pending_.empty())
    silence_.cancel();
  else
    silence_.arm(reactor_, limit_);
}

}  // namespace nodemesh::warden

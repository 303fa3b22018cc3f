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
constexpr int kStartSeconds = 5;

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
  copy_text(reply.message, text.substr(0, sizeof reply.message - 1));
  return reply;
}

Result<> join(const std::string& cgroup) {
  if (cgroup.empty()) return {};
  Fd procs(::open((cgroup + "/cgroup.procs").c_str(), O_WRONLY | O_CLOEXEC));
  if (!procs || ::write(procs.get(), "0", 1) != 1) {
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
  auto joined = join(cgroup);
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

// In the child, before anything else: only the channel and standard error stay open, under number 3.
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

Opener::Opener(io::Reactor& reactor, std::string cgroup)
    : reactor_(reactor),
      cgroup_(std::move(cgroup)),
      replacing_([this] { replace(failure_); }),
      retry_([this] {
        if (auto again = spawn(); !again) replace(again.error());
      }) {}

Result<std::unique_ptr<Opener>> Opener::start(io::Reactor& reactor, std::string cgroup) {
  std::unique_ptr<Opener> opener(new Opener(reactor, std::move(cgroup)));
  if (auto spawned = opener->spawn(); !spawned) return std::unexpected(std::move(spawned.error()));
  return opener;
}

Opener::~Opener() {
  end_child();
}

Result<> Opener::spawn() {
  int pair[2];
  if (::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) < 0)
    return fail_errno("socketpair");
  Fd ours(pair[0]), theirs(pair[1]);
  pid_t self = ::getpid();
  pid_t child = ::fork();
  if (child < 0) return fail_errno("starting the opener process");
  if (child == 0) run_child(isolate(std::move(theirs), self), cgroup_);
  child_ = child;
  theirs.reset();
  PacketSocket socket(std::move(ours));
  pollfd wait{socket.fd(), POLLIN, 0};
  if (::poll(&wait, 1, kStartSeconds * 1000) != 1) return fail("the opener process did not start within 5 s");
  auto packet = socket.receive();
  if (!packet) return std::unexpected(std::move(packet.error()));
  OpenReply ready;
  if (!read(*packet, ready)) return fail("the opener process did not start");
  if (ready.failed) return fail(std::string(ready.message));
  if (auto added = reactor_.add(socket.fd(), *this); !added) return added;
  socket_ = std::move(socket);
  return {};
}

void Opener::end_child() {
  if (socket_) reactor_.remove(socket_.fd(), *this, true);
  socket_ = PacketSocket();
  if (child_ <= 0) return;
  ::kill(child_, SIGKILL);
  while (::waitpid(child_, nullptr, 0) < 0 && errno == EINTR) {
  }
  child_ = -1;
}

void Opener::replace(const Error& why) {
  log::warn(log::Component::warden, "the opener process is gone, starting another",
            {{"reason", why.message}});
  end_child();
  auto failed = std::exchange(pending_, {});
  retry_.arm(reactor_, kRespawn);
  for (auto& done : failed) done(std::unexpected(Error{Reason::NO_SOCKET, why.message}));
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
    OpenReply reply;
    if (!read(*packet, reply) || pending_.empty())
      return replace(Error{Reason::INTERNAL, "malformed answer"});
    Done done = std::move(pending_.front());
    pending_.pop_front();
    if (reply.failed) {
      done(fail(Reason::NO_SOCKET,
                std::string(reply.message, ::strnlen(reply.message, sizeof reply.message))));
    } else {
      done(std::move(packet->descriptors));
    }
  }
}

}  // namespace nodemesh::warden

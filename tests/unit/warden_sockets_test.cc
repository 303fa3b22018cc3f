// Sockets and routes inside a network namespace made for the test; needs root, and says so where it is not
// given.
#include <doctest/doctest.h>

#include <fcntl.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <set>

#include "bpf/abi.h"
#include "warden/namespaces.h"
#include "warden/opener.h"
#include "warden/sockets.h"
#include "warden/source_route.h"

using namespace nodemesh;
using namespace nodemesh::warden;

namespace {

// A child in a namespace of its own, with lo up and 10.99.0.1 on it.
struct Namespace {
  pid_t child = -1;
  std::string path;
  Namespace() {
    int ready[2];
    REQUIRE(::pipe2(ready, O_CLOEXEC) == 0);
    child = ::fork();
    if (child == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      bool ok = ::unshare(CLONE_NEWNET) == 0 && set_up();
      (void)!::write(ready[1], ok ? "y" : "n", 1);
      for (;;) ::pause();
    }
    char answer = 0;
    REQUIRE(::read(ready[0], &answer, 1) == 1);
    ::close(ready[0]);
    ::close(ready[1]);
    REQUIRE(answer == 'y');
    path = "/proc/" + std::to_string(child) + "/ns/net";
  }
  ~Namespace() {
    ::kill(child, SIGKILL);
    ::waitpid(child, nullptr, 0);
  }
  static bool set_up() {
    int fd = ::socket(AF_INET, SOCK_DGRAM, 0);
    ifreq request{};
    std::string("lo").copy(request.ifr_name, 3);
    request.ifr_flags = IFF_UP;
    if (::ioctl(fd, SIOCSIFFLAGS, &request) < 0) return false;
    std::string("lo:1").copy(request.ifr_name, 5);
    auto* address = reinterpret_cast<sockaddr_in*>(&request.ifr_addr);
    *address = {.sin_family = AF_INET, .sin_addr = {.s_addr = htonl(0x0a630001)}};
    return ::ioctl(fd, SIOCSIFADDR, &request) == 0;
  }
};

bool is_root() {
  if (::geteuid() == 0) return true;
  MESSAGE("SKIPPED: making network namespaces needs root");
  return false;
}

template <class T = int>
T option(const Fd& fd, int level, int name) {
  T value{};
  socklen_t length = sizeof value;
  REQUIRE(::getsockopt(fd.get(), level, name, &value, &length) == 0);
  return value;
}

SockAddr name_of(const Fd& fd, decltype(::getsockname) ask) {
  sockaddr_storage native{};
  socklen_t length = sizeof native;
  REQUIRE(ask(fd.get(), reinterpret_cast<sockaddr*>(&native), &length) == 0);
  return SockAddr::from_native(native);
}

int connect_to(const Fd& fd, const SockAddr& address) {
  sockaddr_storage native{};
  socklen_t length = address.to_native(native, option(fd, SOL_SOCKET, SO_DOMAIN));
  if (::connect(fd.get(), reinterpret_cast<sockaddr*>(&native), length) == 0) return 0;
  if (errno != EINPROGRESS) return errno;
  pollfd wait{fd.get(), POLLOUT, 0};
  if (::poll(&wait, 1, 5000) != 1) return ETIMEDOUT;
  return option(fd, SOL_SOCKET, SO_ERROR);
}

// Connects an `in` socket as `client` to `server` in that namespace; the accepted connection's peer, or why
// not.
std::string connect_as(const NetNs& netns, const SockAddr& client, const SockAddr& server,
                       bool listening = true) {
  Fd listener;
  {
    auto inside = InNamespace::enter(netns.fd.get());
    listener.reset(::socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC, 0));
    sockaddr_storage native{};
    socklen_t length = server.to_native(native);
    REQUIRE(::bind(listener.get(), reinterpret_cast<sockaddr*>(&native), length) == 0);
    if (listening) REQUIRE(::listen(listener.get(), 8) == 0);
  }
  auto sockets =
      make_sockets({.netns = netns.fd.get(), .ipv6 = true, .source_kept = true, .count = 1}, SocketKind::in);
  REQUIRE(sockets);
  sockaddr_storage native{};
  socklen_t length = client.to_native(native);
  REQUIRE(::bind((*sockets)[0].get(), reinterpret_cast<sockaddr*>(&native), length) == 0);
  int error = connect_to((*sockets)[0], name_of(listener, ::getsockname));
  if (error != 0) return std::strerror(error);
  Fd accepted(::accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
  return name_of(accepted, ::getpeername).ip.to_string();
}

std::string setting(const NetNs& netns, const char* name) {
  auto inside = InNamespace::enter(netns.fd.get());
  std::ifstream file(std::string("/proc/sys/net/") + name);
  std::string text;
  std::getline(file, text);
  return text;
}

}  // namespace

TEST_CASE("a namespace is known by a cookie that is not the test's own, and by its addresses") {
  if (!is_root()) return;
  Namespace child;
  auto netns = open_netns(child.path);
  REQUIRE(netns);
  CHECK(netns->cookie != *own_netns_cookie());
  CHECK(still_names(child.path, *netns));
  auto addresses = addresses_in(netns->fd.get());
  REQUIRE(addresses);
  CHECK(std::ranges::find(*addresses, Addr::v4(10, 99, 0, 1)) != addresses->end());
  CHECK(std::ranges::find(*addresses, Addr::v4(10, 99, 0, 2)) == addresses->end());
}

TEST_CASE("what is not a network namespace is refused by name") {
  if (!is_root()) return;
  for (std::string path : {"/dev/null", "/proc/self/ns/mnt", "/nonexistent"}) {
    auto netns = open_netns(path);
    REQUIRE_FALSE(netns);
    CHECK(netns.error().message.find(path) != std::string::npos);
  }
}

TEST_CASE("every listener has an ephemeral port of its own and what accepted sockets are to inherit") {
  if (!is_root()) return;
  Namespace child;
  auto netns = open_netns(child.path);
  REQUIRE(netns);
  auto made = make_listeners({.netns = netns->fd.get(), .ipv6 = true, .count = 3});
  REQUIRE(made);
  REQUIRE(made->size() == 9);
  std::set<uint16_t> ports;
  for (const Fd& fd : *made) {
    CHECK(option(fd, SOL_SOCKET, SO_ACCEPTCONN) == 1);
    CHECK(option(fd, IPPROTO_IPV6, IPV6_V6ONLY) == 0);
    CHECK(option(fd, IPPROTO_TCP, TCP_NODELAY) == 1);
    CHECK(option(fd, IPPROTO_TCP, TCP_KEEPIDLE) == 180);
    CHECK(option(fd, IPPROTO_TCP, TCP_KEEPINTVL) == 180);
    CHECK(option(fd, IPPROTO_TCP, TCP_KEEPCNT) == 9);
    CHECK(option(fd, SOL_SOCKET, SO_REUSEADDR) == 1);
    CHECK((::fcntl(fd.get(), F_GETFL) & O_NONBLOCK));
    CHECK((::fcntl(fd.get(), F_GETFD) & FD_CLOEXEC));
    ports.insert(name_of(fd, ::getsockname).port);
  }
  CHECK(ports.size() == 9);
}

TEST_CASE("no other socket can bind a listener's port, not even of our uid, with any option or address") {
  if (!is_root()) return;
  Namespace child;
  auto netns = open_netns(child.path);
  REQUIRE(netns);
  for (bool ipv6 : {true, false}) {
    auto made = make_listeners({.netns = netns->fd.get(), .ipv6 = ipv6, .count = 1});
    REQUIRE(made);
    uint16_t port = name_of((*made)[0], ::getsockname).port;
    for (const char* address : {"0.0.0.0", "127.0.0.1", "10.99.0.1", "::", "::1"}) {
      SockAddr competing{*Addr::parse(address), port};
      if (!ipv6 && !competing.ip.is_v4()) continue;
      for (int options = 0; options < 4; ++options) {
        CAPTURE(competing.to_string());
        CAPTURE(options);
        auto inside = InNamespace::enter(netns->fd.get());
        sockaddr_storage native{};
        int family = competing.ip.is_v4() ? AF_INET : AF_INET6, on = 1;
        socklen_t length = competing.to_native(native, family);
        Fd fd(::socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0));
        if (options & 1) ::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
        if (options & 2) ::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEPORT, &on, sizeof on);
        CHECK(::bind(fd.get(), reinterpret_cast<sockaddr*>(&native), length) == -1);
        CHECK(errno == EADDRINUSE);
      }
    }
  }
}

TEST_CASE("sockets are made for IPv4 alone where the namespace has no IPv6") {
  if (!is_root()) return;
  Namespace child;
  auto netns = open_netns(child.path);
  REQUIRE(netns);
  auto made = make_sockets({.netns = netns->fd.get(), .ipv6 = false, .source_kept = true, .count = 2},
                           SocketKind::in);
  REQUIRE(made);
  CHECK(option((*made)[0], SOL_SOCKET, SO_DOMAIN) == AF_INET);
  CHECK(option((*made)[0], IPPROTO_IP, IP_TRANSPARENT) == 1);
}

TEST_CASE("a bindv6only namespace still gets dual-stack sockets") {
  if (!is_root()) return;
  Namespace child;
  auto netns = open_netns(child.path);
  REQUIRE(netns);
  {
    auto inside = InNamespace::enter(netns->fd.get());
    std::ofstream("/proc/sys/net/ipv6/bindv6only") << "1";
  }
  auto made = make_sockets({.netns = netns->fd.get(), .ipv6 = true, .count = 2}, SocketKind::out);
  REQUIRE(made);
  for (const Fd& fd : *made) CHECK(option(fd, IPPROTO_IPV6, IPV6_V6ONLY) == 0);
}

TEST_CASE(
    "the application sees the client's address once the route is installed, and a closed port refuses at "
    "once") {
  if (!is_root()) return;
  Namespace child;
  auto netns = open_netns(child.path);
  REQUIRE(netns);
  const SockAddr server{Addr::v4(10, 99, 0, 1), 8080};
  const SockAddr client{Addr::v4(203, 0, 113, 9), 0};
  for (int round = 0; round < 2; ++round) {  // idempotent
    auto route = install_source_route(netns->fd.get(), "/proc", true);
    REQUIRE(route);
    CHECK(route->missing == "");
    CHECK((route->ipv4 && route->ipv6));
  }
  CHECK(connect_as(*netns, client, server) == "203.0.113.9");
  CHECK(connect_as(*netns, client, {server.ip, 8081}, false) == std::strerror(ECONNREFUSED));
  CHECK(connect_as(*netns, {*Addr::parse("2001:db8::9"), 0}, {*Addr::parse("::1"), 8082}) == "2001:db8::9");
  CHECK(setting(*netns, "ipv4/ip_local_reserved_ports") == "61000-65095");
}

TEST_CASE("removing the route gives the namespace back as it was") {
  if (!is_root()) return;
  Namespace child;
  auto netns = open_netns(child.path);
  REQUIRE(netns);
  {
    auto inside = InNamespace::enter(netns->fd.get());
    std::ofstream("/proc/sys/net/ipv4/ip_local_reserved_ports") << "8080,60990-60999";
  }
  REQUIRE(install_source_route(netns->fd.get(), "/proc", true));
  CHECK(setting(*netns, "ipv4/ip_local_reserved_ports") == "8080,60990-65095");
  CHECK(setting(*netns, "ipv4/tcp_fwmark_accept") == "1");
  for (int round = 0; round < 2; ++round) {
    REQUIRE(remove_source_route(netns->fd.get(), "/proc"));
    CHECK(setting(*netns, "ipv4/ip_local_reserved_ports") == "8080,60990-60999");
    CHECK(setting(*netns, "ipv4/tcp_fwmark_accept") == "0");
    CHECK(setting(*netns, "ipv4/fwmark_reflect") == "0");
    CHECK(setting(*netns, "ipv6/fwmark_reflect") == "0");
  }
}

TEST_CASE("the capture range is merged into and taken out of lists of reserved ports") {
  CHECK(with_capture_range("") == "61000-65095");
  CHECK(with_capture_range("80,443") == "80,443,61000-65095");
  CHECK(with_capture_range("61000-65095") == "61000-65095");
  CHECK(without_capture_range("61000-65095") == "");
  CHECK(without_capture_range("80,60000-65535") == "80,60000-60999,65096-65535");
  CHECK(without_capture_range("62000") == "");
}

TEST_CASE("the opener makes listeners and sockets from another process, and a killed one is replaced") {
  if (!is_root()) return;
  Namespace child;
  auto netns = open_netns(child.path);
  REQUIRE(netns);
  io::Reactor reactor;
  auto opener = Opener::start(reactor, "");
  REQUIRE(opener);
  int answers = 0;
  Result<std::vector<Fd>> last;
  auto done = [&](Result<std::vector<Fd>> made) {
    ++answers;
    last = std::move(made);
  };
  auto wait_for = [&](int wanted) {
    auto deadline = Monotonic::now() + seconds(10);
    while (answers < wanted && Monotonic::now() < deadline) reactor.run_once(milliseconds(50));
    return answers >= wanted;
  };
  SocketOrder order{.netns = netns->fd.get(), .ipv6 = true, .source_kept = true, .count = 64};
  (*opener)->open_listeners(order, done);
  REQUIRE(wait_for(1));
  REQUIRE(last);
  CHECK(last->size() == 192);
  (*opener)->open_sockets(order, SocketKind::in, done);
  REQUIRE(wait_for(2));
  REQUIRE(last);
  CHECK(last->size() == 64);
  CHECK(option((*last)[0], SOL_SOCKET, SO_MARK) == NM_MARK);
  CHECK(option<uint64_t>((*last)[0], SOL_SOCKET, 71 /* SO_NETNS_COOKIE */) == netns->cookie);

  // Not a namespace: an answer, and the opener lives on.
  Fd null(::open("/dev/null", O_RDONLY | O_CLOEXEC));
  order.netns = null.get();
  (*opener)->open_sockets(order, SocketKind::out, done);
  REQUIRE(wait_for(3));
  REQUIRE_FALSE(last);
  CHECK(last.error().reason == Reason::NO_SOCKET);

  ::kill((*opener)->child(), SIGKILL);
  order.netns = netns->fd.get();
  auto deadline = Monotonic::now() + seconds(10);
  do {
    (*opener)->open_sockets(order, SocketKind::out, done);
    REQUIRE(wait_for(answers + 1));
  } while (!last && Monotonic::now() < deadline);
  CHECK(last);
}

TEST_CASE("an opener that does not answer is given up: its orders fail, and another serves the next") {
  if (!is_root()) return;
  Namespace child;
  auto netns = open_netns(child.path);
  REQUIRE(netns);
  io::Reactor reactor;
  auto opener = Opener::start(reactor, "", milliseconds(200));
  REQUIRE(opener);
  std::vector<Result<std::vector<Fd>>> answers;
  SocketOrder order{.netns = netns->fd.get(), .ipv6 = true, .count = 1};
  auto ask = [&] {
    (*opener)->open_sockets(order, SocketKind::out, [&](auto made) { answers.push_back(std::move(made)); });
  };
  ::kill((*opener)->child(), SIGSTOP);
  ask();
  ask();
  auto deadline = Monotonic::now() + seconds(10);
  while (answers.size() < 2 && Monotonic::now() < deadline) reactor.run_once(milliseconds(50));
  REQUIRE(answers.size() == 2);
  CHECK(answers[0].error().reason == Reason::NO_SOCKET);
  CHECK(answers[1].error().reason == Reason::NO_SOCKET);
  while (!answers.back() && Monotonic::now() < deadline) {
    size_t before = answers.size();
    ask();
    while (answers.size() == before && Monotonic::now() < deadline) reactor.run_once(milliseconds(50));
  }
  CHECK(answers.back());
}

TEST_CASE("an opener that cannot join the proxy's cgroup does not start") {
  io::Reactor reactor;
  auto opener = Opener::start(reactor, "/nonexistent");
  REQUIRE_FALSE(opener);
  CHECK(opener.error().message.find("--proxy-cgroup") != std::string::npos);
}

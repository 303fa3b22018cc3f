// Loopback TCP pairs for tests, and turns of a reactor until a condition holds.
#pragma once

#include <doctest/doctest.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstdlib>
#include <string>
#include <utility>

#include "base/addr.h"
#include "base/fd.h"
#include "io/reactor.h"
#include "io/socket.h"

namespace nodemesh::test {

// Ten seconds, or more where the machine or the build is slow.
inline Monotonic::time_point deadline() {
  const char* factor = std::getenv("NODEMESH_TEST_TIME_FACTOR");
  return Monotonic::now() + seconds(10) * (factor != nullptr ? std::atoi(factor) : 1);
}

template <class Done>
void turn_until(io::Reactor& reactor, Done done) {
  auto until = deadline();
  while (!done() && Monotonic::now() < until) reactor.run_once(milliseconds(10));
  REQUIRE(done());
}

inline void turns(io::Reactor& reactor, int count) {
  for (int i = 0; i < count; ++i) reactor.run_once(milliseconds(1));
}

inline Fd socket_v4(int flags = SOCK_NONBLOCK) {
  return Fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | flags, 0));
}

struct Listening {
  Fd fd = socket_v4();
  SockAddr addr;
  explicit Listening(int receive_buffer = 0, SockAddr any = {Addr::v4(127, 0, 0, 1), 0}) {
    if (receive_buffer > 0)
      ::setsockopt(fd.get(), SOL_SOCKET, SO_RCVBUF, &receive_buffer, sizeof receive_buffer);
    sockaddr_storage native{};
    REQUIRE(::bind(fd.get(), reinterpret_cast<sockaddr*>(&native), any.to_native(native, AF_INET)) == 0);
    REQUIRE(::listen(fd.get(), 512) == 0);
    addr = io::local_address(fd.get());
  }
  // Waits for a connection; non-blocking.
  Fd accept() const {
    pollfd waiting{fd.get(), POLLIN, 0};
    REQUIRE(::poll(&waiting, 1, 10'000) == 1);
    Fd taken(::accept4(fd.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
    REQUIRE(taken);
    return taken;
  }
};

// Two ends of a loopback connection, both non-blocking. Small buffers make the second end a slow reader.
inline std::pair<Fd, Fd> tcp_pair(int send_buffer = 0, int receive_buffer = 0) {
  Listening listening(receive_buffer);
  Fd near = socket_v4(0);
  if (send_buffer > 0) ::setsockopt(near.get(), SOL_SOCKET, SO_SNDBUF, &send_buffer, sizeof send_buffer);
  sockaddr_storage native{};
  REQUIRE(::connect(near.get(), reinterpret_cast<sockaddr*>(&native),
                    listening.addr.to_native(native, AF_INET)) == 0);
  ::fcntl(near.get(), F_SETFL, O_NONBLOCK);
  return {std::move(near), listening.accept()};
}

inline void send_all(const Fd& fd, std::string_view text) {
  while (!text.empty()) {
    pollfd waiting{fd.get(), POLLOUT, 0};
    REQUIRE(::poll(&waiting, 1, 10'000) == 1);
    ssize_t count = ::send(fd.get(), text.data(), text.size(), MSG_NOSIGNAL);
    REQUIRE(count > 0);
    text.remove_prefix(static_cast<size_t>(count));
  }
}

// What has arrived at a plain socket.
struct Received {
  std::string text;
  bool ended = false, reset = false;

  void take(const Fd& fd, size_t most = SIZE_MAX) {
    char buffer[65536];
    while (!ended && !reset && most > 0) {
      ssize_t count = ::recv(fd.get(), buffer, std::min(sizeof buffer, most), MSG_DONTWAIT);
      if (count == 0) ended = true;
      if (count < 0) {
        reset = errno != EAGAIN;
        return;
      }
      text.append(buffer, static_cast<size_t>(count));
      most -= static_cast<size_t>(count);
    }
  }
};

inline std::string pattern(size_t size, unsigned seed = 1) {
  std::string text(size, 0);
  for (auto& c : text) c = static_cast<char>(seed = seed * 1103515245 + 12345);
  return text;
}

}  // namespace nodemesh::test

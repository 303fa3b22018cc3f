#include "ctl/client.h"

#include <poll.h>
#include <sys/socket.h>

#include <cerrno>
#include <charconv>
#include <cstring>
#include <vector>

#include "base/addr.h"
#include "base/fd.h"
#include "ctl/dial.h"

namespace nodemesh::ctl {
namespace {

std::unexpected<Error> unreachable(std::string_view target, std::string_view why) {
  return fail(Reason::CONNECT_FAILED,
              "cannot reach the agent at " + std::string(target) + ": " + std::string(why));
}

Result<Fd> connect_to(std::string_view target, Monotonic::time_point until) {
  bool local = target.starts_with("unix:");
  std::string numeric(local ? "" : target);
  if (numeric.starts_with("localhost:")) numeric.replace(0, 9, "127.0.0.1");
  auto addr = SockAddr::parse(numeric);
  if (!local && !addr) return unreachable(target, "it is neither unix:/path nor ip:port");
  auto made = local ? dial_unix(std::string(target.substr(5)), until) : dial(*addr, until);
  if (!made) return unreachable(target, made.error().message);
  return made;
}

bool send_all(int fd, std::string_view bytes, Monotonic::time_point until) {
  while (!bytes.empty()) {
    ssize_t wrote = ::send(fd, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (wrote > 0) {
      bytes.remove_prefix(static_cast<size_t>(wrote));
    } else if (errno != EINTR && (errno != EAGAIN || !wait_ready(fd, POLLOUT, until))) {
      return false;
    }
  }
  return true;
}

// The value of `content-length` in the head, or nullopt-like npos.
size_t content_length(std::string_view head) {
  for (size_t at = 0; (at = head.find("\r\n", at)) != head.npos;) {
    at += 2;
    static constexpr std::string_view kName = "content-length:";
    if (head.size() - at < kName.size() || ::strncasecmp(head.data() + at, kName.data(), kName.size()) != 0)
      continue;
    auto value = head.substr(at + kName.size());
    value.remove_prefix(std::min(value.find_first_not_of(' '), value.size()));
    size_t length = std::string_view::npos;
    auto parsed = std::from_chars(value.data(), value.data() + value.size(), length);
    return parsed.ec == std::errc{} ? length : std::string_view::npos;
  }
  return std::string_view::npos;
}

}  // namespace

Result<HttpResponse> parse_response(std::string_view bytes, bool at_end) {
  auto broken = [] { return fail("the answer is not HTTP"); };
  static constexpr std::string_view kVersion = "HTTP/1.1 ";
  if (!bytes.starts_with(kVersion.substr(0, std::min(bytes.size(), kVersion.size())))) return broken();
  auto head_end = bytes.find("\r\n\r\n");
  if (head_end == bytes.npos) {
    if (at_end || bytes.size() > 65536) return broken();
    return HttpResponse{};
  }
  HttpResponse response;
  auto digits = bytes.substr(kVersion.size(), 3);
  auto parsed = std::from_chars(digits.data(), digits.data() + digits.size(), response.status);
  if (parsed.ec != std::errc{} || response.status < 100) return broken();
  auto length = content_length(bytes.substr(0, head_end));
  auto body = bytes.substr(head_end + 4);
  if (length == bytes.npos || body.size() < length) {
    if (at_end) return fail("the answer was cut short");
    return HttpResponse{};
  }
  response.body = body.substr(0, length);
  return response;
}

std::string request_text(std::string_view method, std::string_view path) {
  std::string request(method);
  request += " ";
  request += path;
  request += " HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n";
  return request + (method == "POST" ? "content-length: 0\r\n\r\n" : "\r\n");
}

Result<HttpResponse> http(std::string_view target, std::string_view method, std::string_view path,
                          milliseconds deadline) {
  auto until = Monotonic::now() + deadline;
  auto fd = connect_to(target, until);
  if (!fd) return std::unexpected(fd.error());
  std::string request = request_text(method, path);
  if (!send_all(fd->get(), request, until)) return unreachable(target, "it does not read the request");
  std::string answer;
  std::vector<char> chunk(64 * 1024);
  for (;;) {
    ssize_t got = ::recv(fd->get(), chunk.data(), chunk.size(), 0);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0 && errno == EAGAIN) {
      if (!wait_ready(fd->get(), POLLIN, until)) return unreachable(target, "no answer in time");
      continue;
    }
    if (got < 0) return unreachable(target, std::strerror(errno));
    answer.append(chunk.data(), static_cast<size_t>(got));
    if (answer.size() > kMaxAnswer) return fail("the answer of " + std::string(target) + " exceeds 256 MiB");
    if (got > 0) continue;  // the server closes after its answer
    return parse_response(answer, true);
  }
}

}  // namespace nodemesh::ctl

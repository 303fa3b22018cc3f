#include "admin/server.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <cerrno>

#include "admin/http_request.h"
#include "admin/listen.h"
#include "base/log.h"
#include "io/socket.h"

namespace nodemesh::admin {

class Server::Listener final : private io::EventHandler {
 public:
  Listener(Server& server, Surface surface, Fd fd) : server_(server), surface_(surface), fd_(std::move(fd)) {}
  ~Listener() { server_.reactor_.remove(fd_.get(), *this, true); }
  Result<> start() { return server_.reactor_.add(fd_.get(), *this, EPOLLIN); }

 private:
  void on_events(uint32_t) override {
    for (;;) {
      Fd socket(::accept4(fd_.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
      if (socket) {
        server_.accepted(surface_, std::move(socket));
      } else if (errno == EMFILE || errno == ENFILE || errno == ENOMEM || errno == ENOBUFS) {
        // Edge-triggered: what stays in the backlog raises no further event, so look again when there may be
        // room.
        if (!retry_.armed()) retry_.arm(server_.reactor_, milliseconds(100));
        return;
      } else if (errno != EINTR && errno != ECONNABORTED) {
        return;
      }
    }
  }

  Server& server_;
  const Surface surface_;
  Fd fd_;
  io::Timer retry_{[this] { on_events(0); }};
};

// One client: read a request, answer it, read the next. Requests sent ahead wait their turn in the socket.
class Server::Connection final : private io::EventHandler {
 public:
  Connection(Server& server, Surface surface, uint64_t id, Fd socket)
      : surface(surface), server_(server), id_(id), fd_(std::move(socket)), timer_([this] { on_timer(); }) {}
  ~Connection() { server_.reactor_.remove(fd_.get(), *this, true); }

  bool start() {
    timer_.arm(server_.reactor_, server_.limits_.head);
    return server_.reactor_.add(fd_.get(), *this).has_value();
  }
  bool answering() const { return state_ != State::reading; }
  // The reply to request number `request`; late ones are ignored.
  void respond(uint64_t request, const Response& response) {
    if (request != request_number_ || state_ != State::waiting) return;
    send(response);
    drive();
  }

  const Surface surface;

 private:
  enum class State { reading, waiting, writing };

  void on_events(uint32_t) override { drive(); }

  void on_timer() {
    if (state_ == State::writing || parser_.idle()) {
      if (state_ != State::waiting) return server_.close(id_);
    }
    keep_alive_ = false;
    if (state_ == State::waiting) {
      send({504, "text/plain; charset=utf-8",
            "the part of the agent that knows this did not answer in time\n"});
    } else {
      send({408, "text/plain; charset=utf-8", "the request was not complete in time\n"});
    }
    drive();
  }

  // Goes on until something would block. May destroy this.
  void drive() {
    for (;;) {
      bool blocked = false;
      switch (state_) {
        case State::reading:
          blocked = !read_request();
          break;
        case State::waiting:
          return;
        case State::writing:
          blocked = !flush();
          break;
      }
      if (closing_) return server_.close(id_);
      if (blocked) return;
    }
  }

  // True if the state moved on.
  bool read_request() {
    Request request;
    switch (parser_.next(request)) {
      case RequestParser::Status::ready:
        dispatch(request);
        return true;
      case RequestParser::Status::bad:
        keep_alive_ = false;
        send({parser_.status(), "text/plain; charset=utf-8", std::string(parser_.problem()) + "\n"});
        return true;
      case RequestParser::Status::need_more:
        break;
    }
    char bytes[4096];
    bool was_idle = parser_.idle();
    ssize_t got = ::recv(fd_.get(), bytes, sizeof bytes, 0);
    if (got > 0) {
      parser_.feed({bytes, static_cast<size_t>(got)});
      // The whole head has one deadline, from its first byte, however slowly it drips.
      if (was_idle) timer_.arm(server_.reactor_, server_.limits_.head);
      return true;
    }
    if (got == 0 || (errno != EAGAIN && errno != EINTR)) closing_ = true;
    return got < 0 && errno == EINTR;
  }

  void dispatch(const Request& request) {
    state_ = State::waiting;
    keep_alive_ = request.keep_alive;
    head_ = request.method == "HEAD";
    timer_.arm(server_.reactor_, server_.limits_.answer);
    // The reply may come from another thread, and after this connection is gone; ids are never reused.
    server_.routes_.handle(
        surface, request,
        [&server = server_, id = id_, number = ++request_number_](Response response) mutable {
          server.mailbox_.post([&server, id, number, response = std::move(response)]() mutable {
            auto found = server.connections_.find(id);
            if (found != server.connections_.end()) found->second->respond(number, response);
          });
        });
  }

  void send(const Response& response) {
    out_ = serialise(response, keep_alive_, head_);
    sent_ = 0;
    state_ = State::writing;
    timer_.arm(server_.reactor_, server_.limits_.progress);
  }

  // True if the response is out.
  bool flush() {
    while (sent_ < out_.size()) {
      ssize_t wrote = ::send(fd_.get(), out_.data() + sent_, out_.size() - sent_, MSG_NOSIGNAL);
      if (wrote < 0 && errno == EINTR) continue;
      if (wrote < 0) {
        closing_ = errno != EAGAIN;
        return false;
      }
      sent_ += static_cast<size_t>(wrote);
      timer_.arm(server_.reactor_, server_.limits_.progress);
    }
    out_ = {};
    closing_ = !keep_alive_;
    // Unread input would turn close into RST, which may destroy the answer on its way.
    if (closing_) discard_input();
    state_ = State::reading;
    timer_.arm(server_.reactor_, parser_.idle() ? server_.limits_.idle : server_.limits_.head);
    return true;
  }

  void discard_input() {
    ::shutdown(fd_.get(), SHUT_WR);
    char bytes[4096];
    for (int i = 0; i < 64 && ::recv(fd_.get(), bytes, sizeof bytes, 0) > 0; ++i) {
    }
  }

  Server& server_;
  const uint64_t id_;
  Fd fd_;
  io::Timer timer_;
  RequestParser parser_;
  State state_ = State::reading;
  uint64_t request_number_ = 0;
  bool keep_alive_ = true, head_ = false, closing_ = false;
  std::string out_;
  size_t sent_ = 0;
};

Server::Server(io::Reactor& reactor, Sources sources, ServerLimits limits)
    : reactor_(reactor), mailbox_(reactor), limits_(limits), routes_(std::move(sources), reactor) {}
Server::~Server() = default;

Result<> Server::listen(Surface surface, std::string_view address) {
  auto fd = open_listener(address);
  if (!fd) return std::unexpected(fd.error());
  if (!address.starts_with("unix:")) last_address_ = io::local_address(fd->get());
  return adopt(surface, std::move(*fd));
}

Result<> Server::adopt(Surface surface, Fd fd) {
  auto listener = std::make_unique<Listener>(*this, surface, std::move(fd));
  if (auto started = listener->start(); !started) return started;
  listeners_.push_back(std::move(listener));
  return {};
}

size_t Server::connections() const {
  return connections_.size();
}

void Server::accepted(Surface surface, Fd socket) {
  make_room(surface);
  int on = 1;
  ::setsockopt(socket.get(), IPPROTO_TCP, TCP_NODELAY, &on,
               sizeof on);  // fails on Unix sockets, which need none
  uint64_t id = next_id_++;
  auto connection = std::make_unique<Connection>(*this, surface, id, std::move(socket));
  if (connection->start()) connections_.emplace(id, std::move(connection));
}

// A client that holds connections open must not keep kubelet or Prometheus out: the oldest that is not being
// answered gives way, and only if all are being answered the oldest of these.
void Server::make_room(Surface surface) {
  size_t count = 0;
  uint64_t victim = 0, oldest = 0;
  for (const auto& [id, connection] : connections_) {
    if (connection->surface != surface) continue;
    ++count;
    if (!oldest || id < oldest) oldest = id;
    if (!connection->answering() && (!victim || id < victim)) victim = id;
  }
  if (count >= limits_.connections_per_surface) close(victim ? victim : oldest);
}

void Server::close(uint64_t id) {
  connections_.erase(id);
}

}  // namespace nodemesh::admin

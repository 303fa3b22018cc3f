#include "kube/api_client.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "io/resolver.h"
#include "kube/api_connection.h"
#include "kube/json.h"

namespace nodemesh::kube {
namespace {

constexpr size_t kMostConnections = 64;

// It becomes a line of an HTTP/1.1 request.
bool is_request_target(std::string_view path) {
  return path.starts_with('/') &&
         std::ranges::all_of(path, [](unsigned char c) { return c > 0x20 && c < 0x7f; });
}

bool is_field_value(std::string_view text) {
  return std::ranges::all_of(text, [](unsigned char c) { return c >= 0x20 && c < 0x7f; });
}

}  // namespace

std::string_view verb_name(Verb verb) {
  static constexpr std::string_view kNames[] = {"GET", "POST", "PUT", "PATCH", "DELETE"};
  return kNames[static_cast<size_t>(verb)];
}

std::string failure_text(int status, std::string_view body) {
  auto tree = parse_json(body.substr(0, 64 * 1024));
  const Node* message = tree ? tree->find("message") : nullptr;
  if (message != nullptr && !message->text.empty()) return fmt::format("HTTP {}: {}", status, message->text);
  return fmt::format("HTTP {}", status);
}

std::string percent_encode(std::string_view value) {
  std::string out;
  for (unsigned char c : value) {
    bool plain = std::isalnum(c) || c == '-' || c == '.' || c == '_' || c == '~';
    out += plain ? std::string(1, static_cast<char>(c)) : fmt::format("%{:02X}", c);
  }
  return out;
}

class ApiClient::Engine final : private ApiConnection::Owner, private ApiExchange::Owner {
 public:
  Engine(io::Reactor& reactor, const Clock& clock, const Access& access, ApiTimes times)
      : reactor_(reactor),
        access_(access),
        times_(times),
        token_(access.token, clock),
        resolver_(reactor),
        kick_([this] { kick(); }),
        bury_([this] { graves_.clear(), old_exchanges_.clear(); }) {}

  CallId add(ApiRequest request, Done done, ApiStream* reader) {
    CallId id = ++last_id_;
    auto exchange =
        std::make_unique<ApiExchange>(static_cast<ApiExchange::Owner&>(*this), id, std::move(request));
    exchange->done = std::move(done);
    exchange->reader = reader;
    arm_deadline(*exchange);
    exchanges_.push_back(std::move(exchange));
    kick_.schedule(reactor_);
    return id;
  }

  void cancel(CallId id) {
    auto found = std::ranges::find(exchanges_, id, [](const auto& exchange) { return exchange->id; });
    if (found == exchanges_.end()) return;
    if (auto* on = (*found)->connection) on->give_up(**found);
    remove(**found);
  }

  std::optional<Monotonic::time_point> last_contact(CallId id) const {
    auto found = std::ranges::find(exchanges_, id, [](const auto& exchange) { return exchange->id; });
    if (found == exchanges_.end() || (*found)->connection == nullptr) return std::nullopt;
    return (*found)->connection->last_contact();
  }

  std::string_view protocol() const {
    for (const auto& connection : connections_) {
      if (connection->is_open()) return connection->is_h2() ? "h2" : "http/1.1";
    }
    return "";
  }

 private:
  // Puts waiting requests on connections, and dials where there is no room. Runs at the end of a turn, so
  // never within a call of a connection or of a user.
  void kick() {
    std::vector<ApiExchange*> waiting;
    for (const auto& exchange : exchanges_) {
      if (exchange->connection == nullptr) waiting.push_back(exchange.get());
    }
    size_t placed = 0;
    for (; placed < waiting.size(); ++placed) {
      auto found = std::ranges::find_if(connections_, &ApiConnection::has_room);
      if (found == connections_.end()) break;
      if (!send(**found, *waiting[placed])) return kick_.schedule(reactor_);
    }
    size_t left = waiting.size() - placed;
    // HTTP/2 takes them all on one connection; before the first one nobody knows what the server speaks.
    size_t wanted = h1_ ? left : std::min<size_t>(left, 1);
    while (dialling() < wanted && connections_.size() < kMostConnections) {
      if (!dial()) return;
    }
  }

  // False: the exchange ended instead.
  bool send(ApiConnection& connection, ApiExchange& exchange) {
    auto token = token_.token();
    if (!token) {
      end(exchange, std::unexpected(token.error()));
      return false;
    }
    if (!is_request_target(exchange.request.path) || !is_field_value(exchange.request.accept) ||
        !is_field_value(exchange.request.content_type) || !is_field_value(*token)) {
      end(exchange, fail("a request to the API server holds characters that HTTP does not allow"));
      return false;
    }
    exchange.token = std::move(*token);
    connection.send(exchange);
    return true;
  }

  size_t dialling() const {
    auto made = std::ranges::count_if(connections_, [](const auto& c) { return !c->is_open(); });
    return static_cast<size_t>(made) + (resolving_ ? 1 : 0);
  }

  // False when it cannot be tried; the waiting requests have been told.
  bool dial() {
    if (auto address = Addr::parse(access_.host)) return dial_next({SockAddr{*address, access_.port}});
    if (resolving_) return false;
    resolving_ = true;
    resolver_.resolve(access_.host, access_.port, [this](Result<std::vector<SockAddr>> found) {
      resolving_ = false;
      if (!found) return fail_waiting(found.error());
      std::ranges::reverse(*found);
      dial_next(std::move(*found));
    });
    return true;
  }

  // The last of `left` next.
  bool dial_next(std::vector<SockAddr> left) {
    auto ssl = make_api_ssl(access_);
    if (!ssl) return fail_waiting(ssl.error()), false;
    SockAddr to = left.back();
    left.pop_back();
    auto connection = std::make_unique<ApiConnection>(
        reactor_, buffers_, static_cast<ApiConnection::Owner&>(*this), access_, times_);
    auto dialled = connection->dial(to, std::move(*ssl));
    if (!dialled) {
      if (!left.empty()) return dial_next(std::move(left));
      return fail_waiting(dialled.error()), false;
    }
    other_addresses_.emplace_back(connection.get(), std::move(left));
    connections_.push_back(std::move(connection));
    return true;
  }

  void on_open(ApiConnection& connection) override {
    h1_ = !connection.is_h2();
    forget_addresses(connection);
    kick_.schedule(reactor_);
  }
  void on_room(ApiConnection&) override { kick_.schedule(reactor_); }

  void on_closed(ApiConnection& connection, bool was_open, const Error& why) override {
    auto left = forget_addresses(connection);
    auto found = std::ranges::find(connections_, &connection, &std::unique_ptr<ApiConnection>::get);
    graves_.push_back(std::move(*found));
    connections_.erase(found);
    bury_.schedule(reactor_);
    if (!was_open && !left.empty()) {
      dial_next(std::move(left));
    } else if (!was_open) {
      fail_waiting(why);
    }
    kick_.schedule(reactor_);
  }

  std::vector<SockAddr> forget_addresses(const ApiConnection& connection) {
    std::vector<SockAddr> left;
    auto found = std::ranges::find(other_addresses_, &connection,
                                   [](const auto& entry) -> const ApiConnection* { return entry.first; });
    if (found == other_addresses_.end()) return left;
    left = std::move(found->second);
    other_addresses_.erase(found);
    return left;
  }

  void fail_waiting(const Error& why) {
    std::vector<CallId> waiting;
    for (const auto& exchange : exchanges_) {
      if (exchange->connection == nullptr) waiting.push_back(exchange->id);
    }
    Error named{why.reason, access_.url() + ": " + why.message};
    for (CallId id : waiting) {
      auto found = std::ranges::find(exchanges_, id, [](const auto& exchange) { return exchange->id; });
      if (found != exchanges_.end()) end(**found, std::unexpected(named));
    }
  }

  bool on_exchange_head(ApiExchange& exchange, const ApiHead& head) override {
    if (head.status == 401 && !exchange.asked_again && token_.expire()) {
      auto token = token_.token();
      if (token && *token != exchange.token) {
        exchange.asked_again = true;
        again(exchange);
        return false;
      }
    }
    if (exchange.reader == nullptr) return true;
    auto limit = exchange.request.stream_limit;
    exchange.deadline->cancel();
    if (limit.count() > 0) exchange.deadline->arm(reactor_, limit);
    exchange.reader->on_head(head);
    return is_live(exchange);
  }

  bool on_exchange_bytes(ApiExchange& exchange, std::string_view bytes) override {
    if (exchange.reader != nullptr) {
      exchange.reader->on_bytes(bytes);
      return is_live(exchange);
    }
    if (exchange.answer.body.size() + bytes.size() > exchange.request.max_body) {
      exchange.connection->give_up(exchange);
      end(exchange,
          fail(Reason::OVER_LIMIT, fmt::format("{}{}: the answer is larger than {} bytes", access_.url(),
                                               exchange.request.path, exchange.request.max_body)));
      return false;
    }
    exchange.answer.body.append(bytes);
    return true;
  }

  void on_exchange_end(ApiExchange& exchange, Result<> how, bool processed) override {
    if (!how && !processed && !exchange.resent && !exchange.head_seen) {
      exchange.resent = true;
      return again(exchange);
    }
    end(exchange, std::move(how));
  }

  void arm_deadline(ApiExchange& exchange) {
    exchange.deadline = std::make_unique<io::Timer>([this, &exchange] {
      if (auto* on = exchange.connection) on->give_up(exchange);
      end(exchange, fail(Reason::CONNECT_TIMEOUT, access_.url() + ": no answer within the time for it"));
    });
    exchange.deadline->arm(reactor_, exchange.request.timeout);
  }

  // Another exchange takes the place of this one, which may be in the middle of a call.
  void again(ApiExchange& exchange) {
    if (auto* on = exchange.connection) on->give_up(exchange);
    auto found = std::ranges::find(exchanges_, exchange.id, [](const auto& e) { return e->id; });
    auto fresh =
        std::make_unique<ApiExchange>(static_cast<ApiExchange::Owner&>(*this), exchange.id, exchange.request);
    fresh->done = std::move(exchange.done);
    fresh->reader = exchange.reader;
    fresh->asked_again = exchange.asked_again;
    fresh->resent = exchange.resent;
    arm_deadline(*fresh);
    exchange.deadline->cancel();
    old_exchanges_.push_back(std::exchange(*found, std::move(fresh)));
    bury_.schedule(reactor_);
    kick_.schedule(reactor_);
  }

  bool is_live(const ApiExchange& exchange) const {
    return std::ranges::any_of(exchanges_, [&](const auto& live) { return live.get() == &exchange; });
  }

  std::unique_ptr<ApiExchange> take(ApiExchange& exchange) {
    auto found = std::ranges::find(exchanges_, &exchange, &std::unique_ptr<ApiExchange>::get);
    auto taken = std::move(*found);
    exchanges_.erase(found);
    taken->deadline->cancel();
    return taken;
  }

  void remove(ApiExchange& exchange) {
    old_exchanges_.push_back(take(exchange));
    bury_.schedule(reactor_);
  }

  void end(ApiExchange& exchange, Result<> how) {
    remove(exchange);
    if (exchange.reader != nullptr) return exchange.reader->on_end(std::move(how));
    if (!how) return exchange.done(std::unexpected(how.error()));
    exchange.done(std::move(exchange.answer));
  }

  io::Reactor& reactor_;
  const Access& access_;
  const ApiTimes times_;
  TokenCache token_;
  io::Buffers buffers_;
  io::Resolver resolver_;
  CallId last_id_ = 0;
  bool resolving_ = false, h1_ = false;
  std::vector<std::unique_ptr<ApiExchange>> old_exchanges_;  // until the end of the turn
  std::vector<std::unique_ptr<ApiExchange>> exchanges_;
  std::vector<std::unique_ptr<ApiConnection>> graves_;
  std::vector<std::unique_ptr<ApiConnection>> connections_;
  // Not yet tried, should the connection fail; the best last.
  std::vector<std::pair<const ApiConnection*, std::vector<SockAddr>>> other_addresses_;
  io::Deferred kick_;
  io::Deferred bury_;
};

ApiClient::ApiClient(io::Reactor& reactor, const Clock& clock, Access access, ApiTimes times)
    : access_(std::move(access)), engine_(std::make_unique<Engine>(reactor, clock, access_, times)) {}

ApiClient::~ApiClient() = default;

ApiClient::CallId ApiClient::request(ApiRequest request, Done done) {
  return engine_->add(std::move(request), std::move(done), nullptr);
}

ApiClient::CallId ApiClient::stream(ApiRequest request, ApiStream& reader) {
  return engine_->add(std::move(request), nullptr, &reader);
}

void ApiClient::cancel(CallId id) {
  engine_->cancel(id);
}

std::optional<Monotonic::time_point> ApiClient::last_contact(CallId id) const {
  return engine_->last_contact(id);
}

std::string_view ApiClient::protocol() const {
  return engine_->protocol();
}

}  // namespace nodemesh::kube

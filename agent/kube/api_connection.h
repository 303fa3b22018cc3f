// One TLS connection to an API server, and the requests on it: HTTP/2 where ALPN says so, else HTTP/1.1 with
// one request at a time. Belongs to an ApiClient's engine, which dials, chooses and buries connections; never
// destroyed within its own calls. Reactor thread only.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/addr.h"
#include "base/clock.h"
#include "base/fd.h"
#include "http/h2_session.h"
#include "io/buffers.h"
#include "io/reactor.h"
#include "kube/api_client.h"
#include "kube/h1_response.h"
#include "tls/openssl.h"
#include "tls/stream.h"

namespace nodemesh::kube {

// A TLS client for `access`: its files are read now, the server's certificate must be for
// access.server_name. `alpn` as tls::OutgoingTls has it.
Result<tls::SslPtr> make_api_ssl(const Access& access, std::string_view alpn = "\x02h2\x08http/1.1");
// What a person needs to know where the server's certificate was refused; empty where it was not.
std::string api_server_refused(SSL* ssl, const Access& access);

class ApiConnection;

// One request under way. The engine owns it and gets what comes of it.
class ApiExchange final : private http::H2Stream, private H1Response::Reader {
 public:
  class Owner {
   public:
    // False: the exchange was given up within the call.
    virtual bool on_exchange_head(ApiExchange& exchange, const ApiHead& head) = 0;
    virtual bool on_exchange_bytes(ApiExchange& exchange, std::string_view bytes) = 0;
    // `processed`: false when the server surely did not look at the request.
    virtual void on_exchange_end(ApiExchange& exchange, Result<> how, bool processed) = 0;

   protected:
    ~Owner() = default;
  };

  ApiExchange(Owner& owner, ApiClient::CallId call, ApiRequest what)
      : id(call), request(std::move(what)), owner_(owner) {}

  const ApiClient::CallId id;
  const ApiRequest request;
  std::string token;                    // as sent
  ApiConnection* connection = nullptr;  // null while it waits
  ApiClient::Done done;                 // this, or
  ApiStream* reader = nullptr;          // that
  ApiAnswer answer;                     // as far as it came
  bool head_seen = false;
  bool asked_again = false;  // after a 401
  bool resent = false;       // after a connection that was lost before the server looked
  std::unique_ptr<io::Timer> deadline;

 private:
  friend class ApiConnection;
  void on_headers(const http::HeaderBlock& headers, bool end) override;
  void on_data(std::span<const iovec> pieces, size_t bytes) override;
  void on_end() override { end_seen_ = true; }
  Pull pull(std::span<uint8_t> out) override;
  void on_close(http::H2Error error, bool processed) override;
  void on_head(const http::HeaderBlock& head) override;
  void on_body(std::string_view bytes) override;
  void finish(Result<> how, bool processed);

  Owner& owner_;
  size_t sent_ = 0;
  bool end_seen_ = false, over_ = false;
};

class ApiConnection final : private io::EventHandler, private http::H2SessionOwner {
 public:
  class Owner {
   public:
    virtual void on_open(ApiConnection& connection) = 0;
    // It could not be made (`was_open` false) or is over. Its exchanges have been told. Bury it.
    virtual void on_closed(ApiConnection& connection, bool was_open, const Error& why) = 0;
    // A place became free.
    virtual void on_room(ApiConnection& connection) = 0;

   protected:
    ~Owner() = default;
  };

  ApiConnection(io::Reactor& reactor, io::Buffers& buffers, Owner& owner, const Access& access,
                const ApiTimes& times);
  ~ApiConnection();

  // Connects; on_open or on_closed follows, or an Error at once.
  Result<> dial(const SockAddr& to, tls::SslPtr ssl);
  bool is_open() const { return state_ == State::open; }
  bool is_h2() const { return session_ != nullptr; }
  // Another request can be sent now.
  bool has_room() const;
  // REQUIRES has_room(). What comes of it comes later, through the exchange's owner.
  void send(ApiExchange& exchange);
  // Takes an exchange away before its end.
  void give_up(ApiExchange& exchange);
  Monotonic::time_point last_contact() const { return last_contact_; }

 private:
  friend class ApiExchange;
  enum class State : uint8_t { idle, connecting, handshaking, open, closed };

  void on_events(uint32_t events) override;
  void on_request(int32_t, const http::HeaderBlock&, bool) override {}
  void on_goaway() override;
  void on_ping_ack(http::H2Ping) override;

  void connected();
  void shake_hands();
  void opened();
  void read_all();
  bool take(std::span<const uint8_t> bytes);
  bool take_h1(std::string_view bytes);
  void flush();
  void write_h2();
  void ping();
  void detach(ApiExchange& exchange);
  void close(std::string why);
  void close_later(std::string why);

  io::Reactor& reactor_;
  io::Buffers& buffers_;
  Owner& owner_;
  const Access& access_;
  const ApiTimes& times_;
  State state_ = State::idle;
  Fd connecting_;
  tls::SslPtr ssl_;  // until the stream has it
  std::unique_ptr<tls::Stream> stream_;
  std::unique_ptr<http::H2Session> session_;  // HTTP/2
  std::unique_ptr<H1Response> response_;      // HTTP/1.1, of `current_`
  std::vector<ApiExchange*> exchanges_;
  ApiExchange* current_ = nullptr;  // HTTP/1.1
  bool used_before_ = false;        // HTTP/1.1: it has carried a response
  bool going_away_ = false, reading_ = false, pinged_ = false;
  std::string closing_;  // why it is to be closed at the end of the turn
  Monotonic::time_point last_contact_;
  std::string peer_;
  io::Timer timer_;
  io::Timer ping_timer_;
  io::Deferred flush_due_;
  std::shared_ptr<int> alive_ = std::make_shared<int>(0);  // for work posted for later
};

}  // namespace nodemesh::kube

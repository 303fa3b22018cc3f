// A scripted API server for tests, on the test's own reactor: TLS, HTTP/1.1 or HTTP/2, each request handed to
// a function that answers at once, piece by piece, or never. It shares the HTTP/2 library with the client, so
// a real peer is tested elsewhere.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "http/h2_session.h"
#include "io/reactor.h"
#include "support/certs.h"
#include "tls/stream.h"

namespace nodemesh::test {

class ApiServer final : private io::EventHandler {
 public:
  class Connection;
  using Headers = std::vector<std::pair<std::string, std::string>>;

  // One request. Lives as long as the server; what is done after the client left is lost.
  struct Call {
    std::string method, target, authorization, accept, content_type, body;
    bool open = true;  // the client has not left
    bool has(std::string_view text) const { return target.find(text) != target.npos; }

    void answer(int status, std::string_view body, Headers headers = {});
    void start(int status, Headers headers = {});  // then send() and end()
    void send(std::string_view bytes);
    void end();
    void raw(std::string_view bytes);  // HTTP/1.1: as it is
    void cut();                        // the connection, without a word

    Connection* connection = nullptr;
    size_t number = 0;
  };

  struct Options {
    bool h2 = true;
    LeafOptions certificate{.dns = {"kubernetes"}};
    const TestCa* clients = nullptr;  // demands certificates of this authority
  };

  ApiServer(io::Reactor& reactor, const TestCa& ca, Options options);
  ~ApiServer();

  uint16_t port() const { return port_; }
  std::function<void(Call&)> handle;  // runs within on_events of a connection
  std::vector<std::unique_ptr<Call>>& calls() { return calls_; }
  Call& last() { return *calls_.back(); }
  size_t connections() const { return connections_.size(); }
  size_t accepted = 0;
  // Ends every connection; with `goaway` HTTP/2 ones are told first, and keep their streams.
  void cut_all();
  void go_away();
  // Connections stay open and are neither read nor written any more.
  void freeze();

 private:
  friend class Connection;
  void on_events(uint32_t events) override;

  io::Reactor& reactor_;
  Options options_;
  tls::SslCtxPtr context_;
  Fd listener_;
  uint16_t port_ = 0;
  bool frozen_ = false;
  std::vector<std::unique_ptr<Call>> calls_;
  std::vector<std::unique_ptr<Connection>> connections_, gone_;
  io::Buffers buffers_;
};

}  // namespace nodemesh::test

// The way in for agents of a cluster: accepts TCP, ends TLS 1.3 and hands the plain bytes to a backend over a
// socket pair. What strangers may cost is bounded here, before anything of theirs is parsed but TLS:
// connections in all and from one address, time for the handshake. Main thread only.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>

#include "base/addr.h"
#include "base/fd.h"
#include "base/reason.h"
#include "controller/unix_listener.h"
#include "io/buffers.h"
#include "io/reactor.h"
#include "tls/openssl.h"

namespace nodemesh::controller {

class TlsFront final : private io::EventHandler {
 public:
  struct Settings {
    size_t max_connections = 4096;
    size_t max_of_address = 64;
    milliseconds handshake{10'000};
  };
  struct Counters {
    uint64_t accepted = 0, refused = 0, failed_handshakes = 0;
  };
  // The context that a new connection is to use; null: there is none yet, and the connection is refused.
  using Context = std::function<SSL_CTX*()>;

  // Takes over a listening TCP socket. `accepted` gets a stream socket of plain bytes for every connection
  // whose handshake is done. `reactor` outlives it.
  static Result<std::unique_ptr<TlsFront>> start(io::Reactor& reactor, Fd listener, Settings settings,
                                                 Context context, Accepted accepted);
  ~TlsFront();
  TlsFront(const TlsFront&) = delete;
  TlsFront& operator=(const TlsFront&) = delete;

  const Counters& counters() const { return counters_; }
  size_t connections() const { return connections_.size(); }

 private:
  class Connection;
  TlsFront(io::Reactor& reactor, Fd listener, Settings settings, Context context, Accepted accepted);
  void on_events(uint32_t) override { accept_all(); }
  void accept_all();
  void take(Fd peer, const SockAddr& from);
  void drop(Connection& connection);
  void sweep();

  io::Reactor& reactor_;
  Fd listener_;
  const Settings settings_;
  Context context_;
  Accepted accepted_;
  Counters counters_;
  io::Buffers buffers_;
  uint64_t next_id_ = 1;
  std::map<uint64_t, std::unique_ptr<Connection>> connections_;
  std::map<Addr, size_t> of_address_;
  std::vector<uint64_t> dropped_;  // destroyed at the end of the turn, when none of their code runs
  io::Deferred sweep_{[this] { sweep(); }};
  io::Timer accept_again_{[this] { accept_all(); }};
};

// A TLS server context: 1.3 only, ALPN h2, no resumption. The credential is PEM, leaf first.
Result<tls::SslCtxPtr> make_server_context(EVP_PKEY* key, const std::vector<std::string>& chain_pem);

}  // namespace nodemesh::controller

#include "proxy/relay.h"

namespace nodemesh::proxy {
namespace {

constexpr size_t kChunk = 128 * 1024;
// What one relay may move in a turn before the others have theirs.
constexpr size_t kTurnBudget = 1 << 20;

void count(telemetry::Record& record, bool from_client, size_t bytes) {
  if (from_client) {
    record.add_from_client(bytes);
  } else {
    record.add_from_server(bytes);
  }
}

}  // namespace

void TcpRelay::start() {
  started_ = true;
  if (client.broken() || server.broken()) return finish({Reason::PEER_RESET, "one end reset the connection"});
  if (client.readable() && !pump(client, server)) return;
  if (server.readable()) pump(server, client);
}

bool TcpRelay::pump(io::TcpEnd& from, io::TcpEnd& to) {
  for (size_t moved = 0; from.readable() && to.kept() == 0;) {
    if (moved >= kTurnBudget) {
      pump_again(from, to);
      return true;
    }
    auto [bytes, status] = from.read({buffers_.plain.get(), kChunk});
    moved += bytes;
    if (bytes > 0) {
      count(record_, &from == &client, bytes);
      iovec piece{buffers_.plain.get(), bytes};
      to.write({&piece, 1}, bytes);
    }
    if (status == io::TcpEnd::Status::broken || to.broken()) {
      finish({Reason::PEER_RESET,
              &from == &client ? "the client reset the connection" : "the server reset the connection"});
      return false;
    }
    // When this was the second end and nothing is left, closing says it, without a call of its own.
    bool last = to.read_ended() && to.kept() == 0 && from.kept() == 0;
    if (status == io::TcpEnd::Status::end && !last) to.end_write();
  }
  if (client.read_ended() && server.read_ended() && client.kept() == 0 && server.kept() == 0) {
    finish({Reason::NONE, {}});
    return false;
  }
  return true;
}

// Once, however many events ask for it meanwhile: each would take a turn's share of its own.
void TcpRelay::pump_again(io::TcpEnd& from, io::TcpEnd& to) {
  bool& again = again_[&from == &server];
  if (std::exchange(again, true)) return;
  if (alive_ == nullptr) alive_ = std::make_shared<int>(0);
  reactor_.post([this, &from, &to, &again, alive = std::weak_ptr<int>(alive_)] {
    if (alive.expired()) return;
    again = false;
    pump(from, to);
  });
}

void TcpRelay::on_readable(io::TcpEnd& end) {
  if (started_ && !again_[&end == &server]) pump(end, &end == &client ? server : client);
}

void TcpRelay::on_drained(io::TcpEnd& end, size_t) {
  if (!started_ || end.kept() > 0) return;
  pump(&end == &client ? server : client, end);
}

void TcpRelay::on_connected(io::TcpEnd&, int error) {
  owner_.on_relay_connected(error);
}

void TcpRelay::on_broken(io::TcpEnd& end) {
  finish({Reason::PEER_RESET,
          &end == &client ? "the client reset the connection" : "the server reset the connection"});
}

void TcpRelay::abort() {
  alive_.reset();  // work that is posted still finds this object, but no sockets
  client.reset();
  server.reset();
}

void TcpRelay::finish(const Error& error) {
  alive_.reset();
  if (error.reason != Reason::NONE) {
    abort();
  } else {
    client.close();
    server.close();
  }
  owner_.on_relay_done(error);
}

TunnelRelay::~TunnelRelay() {
  if (connection_ != nullptr && !closed_) connection_->session().abandon(*this, http::H2Error::cancel);
}

void TunnelRelay::start() {
  flowing_ = true;
  if (tcp.readable()) on_readable(tcp);
}

void TunnelRelay::on_headers(const http::HeaderBlock& headers, bool) {
  if (role_ != Role::client || answered_ || headers.status < 200) return;
  answered_ = true;
  if (headers.status != 200) {
    done_ = true;  // the stream's end, which follows, is no news
    return owner_.on_tunnel_refused(
        {Reason::TUNNEL_REFUSED, "CONNECT answered " + std::to_string(headers.status)}, true);
  }
  owner_.on_tunnel_accepted(headers);
  start();
}

void TunnelRelay::on_data(std::span<const iovec> pieces, size_t bytes) {
  count(record_, role_ == Role::server, bytes);
  size_t gone = tcp.write(pieces, bytes);
  if (tcp.broken()) return on_broken(tcp);
  give_back(gone);
}

void TunnelRelay::give_back(size_t bytes) {
  if (bytes == 0 || connection_ == nullptr || closed_) return;
  connection_->session().consume(*this, bytes);
  connection_->schedule_flush();
}

void TunnelRelay::on_end() {
  peer_ended_ = true;
  tcp.end_write();
}

http::H2Stream::Pull TunnelRelay::pull(std::span<uint8_t> out) {
  if (!flowing_ || !tcp.readable()) return {};
  auto [bytes, status] = tcp.read(out);
  count(record_, role_ == Role::client, bytes);
  return {bytes, status == io::TcpEnd::Status::end, status == io::TcpEnd::Status::broken};
}

void TunnelRelay::on_close(http::H2Error error, bool processed) {
  closed_ = true;
  Error why = connection_->error();
  if (error == http::H2Error::none) {
    // Both directions ended; what the application has not taken yet still goes to it.
    if (role_ == Role::client && !answered_)
      return owner_.on_tunnel_refused({Reason::STREAM_RESET, "no answer to CONNECT"}, true);
    if (peer_ended_ && tcp.read_ended()) {
      if (tcp.kept() == 0) finish({Reason::NONE, {}});
      return;
    }
  }
  if (tcp.broken()) {
    why = {Reason::PEER_RESET, "the application reset the connection"};
  } else if (why.reason == Reason::NONE) {
    why = {Reason::STREAM_RESET, "the peer reset the stream"};
  }
  if (role_ == Role::client && !answered_) return owner_.on_tunnel_refused(why, processed);
  finish(why);
}

void TunnelRelay::on_readable(io::TcpEnd&) {
  if (!flowing_ || connection_ == nullptr || closed_) return;
  connection_->session().resume(*this);
  connection_->schedule_flush();
}

void TunnelRelay::on_drained(io::TcpEnd& end, size_t bytes) {
  give_back(bytes);
  if (closed_ && end.kept() == 0) finish({Reason::NONE, {}});
}

void TunnelRelay::on_connected(io::TcpEnd&, int error) {
  owner_.on_relay_connected(error);
}

void TunnelRelay::on_broken(io::TcpEnd&) {
  finish({Reason::PEER_RESET, "the application reset the connection"});
}

void TunnelRelay::abort(http::H2Error error) {
  done_ = true;
  if (connection_ != nullptr && !closed_) {
    connection_->session().abandon(*this, error);
    connection_->schedule_flush();
    closed_ = true;
  }
  tcp.reset();
}

void TunnelRelay::finish(const Error& error) {
  if (done_) return;
  if (error.reason != Reason::NONE) {
    abort(http::H2Error::connect_error);
  } else {
    done_ = true;
    tcp.close();
  }
  owner_.on_relay_done(error);
}

}  // namespace nodemesh::proxy

#include <doctest/doctest.h>

#include "unit/tls_pairs.h"

using namespace nodemesh;
using namespace nodemesh::tls;
using test::Handshaken;
using test::Pair;
using test::Stranger;

namespace {

Reason reason(const Result<const Peer*>& result) {
  return result ? Reason::NONE : result.error().reason;
}
std::string name(const char* text) {
  return text == nullptr ? "" : text;
}

}  // namespace

TEST_CASE("two agents agree on TLS 1.3, AES-128-GCM, X25519 and nm1, and know each other") {
  Pair pair;
  Handshaken done = pair.connect();
  REQUIRE(done.at_client);
  REQUIRE(done.at_server);
  CHECK((*done.at_client)->identity->uri == test::spiffe("default", "server"));
  CHECK((*done.at_server)->identity->uri == test::spiffe("default", "client"));
  CHECK((*done.at_server)->alpn == Alpn::nm1);
  CHECK_FALSE((*done.at_server)->resumed);
  CHECK(name(SSL_get_version(done.client.get())) == "TLSv1.3");
  CHECK(name(SSL_get_cipher_name(done.client.get())) == "TLS_AES_128_GCM_SHA256");
  CHECK(SSL_get_shared_group(done.server.get(), 0) == NID_X25519);
  CHECK(SSL_get_servername(done.server.get(), TLSEXT_NAMETYPE_host_name) == nullptr);
  CHECK(peer_of(done.client.get()) == *done.at_client);
}

TEST_CASE("a client that orders AES-256 first still gets AES-128") {
  Pair pair;
  auto issued = pair.ca.issue({.uris = {test::spiffe("default", "ztunnel")}});
  auto ssl = Stranger{.identity = &issued}.make();
  SSL_set_ciphersuites(ssl.get(), "TLS_AES_256_GCM_SHA384:TLS_AES_128_GCM_SHA256");
  Handshaken done = pair.connect(std::move(ssl));
  REQUIRE(done.at_server);
  CHECK(name(SSL_get_cipher_name(done.server.get())) == "TLS_AES_128_GCM_SHA256");
  CHECK((*done.at_server)->alpn == Alpn::h2);
}

TEST_CASE("a client without a certificate is PEER_CERT_MISSING") {
  Pair pair;
  CHECK(reason(pair.connect(Stranger{}.make()).at_server) == Reason::PEER_CERT_MISSING);
}

TEST_CASE("TLS 1.2 is refused") {
  Pair pair;
  auto issued = pair.ca.issue({.uris = {test::spiffe("default", "old")}});
  Stranger old{.min_version = TLS1_2_VERSION, .max_version = TLS1_2_VERSION, .identity = &issued};
  CHECK(reason(pair.connect(old.make()).at_server) == Reason::TLS_FAILED);
}

TEST_CASE("a client without ALPN, or with others only, is ALPN_MISMATCH") {
  Pair pair;
  auto issued = pair.ca.issue({.uris = {test::spiffe("default", "x")}});
  CHECK(reason(pair.connect(Stranger{.alpn = "", .identity = &issued}.make()).at_server) ==
        Reason::ALPN_MISMATCH);
  CHECK(reason(pair.connect(Stranger{.alpn = "\x08http/1.1", .identity = &issued}.make()).at_server) ==
        Reason::ALPN_MISMATCH);
  CHECK(reason(pair.connect(Stranger{.alpn = std::string("\x08http/1.1\x02h2"), .identity = &issued}.make())
                   .at_server) == Reason::NONE);
}

TEST_CASE("what is wrong with a client's certificate reaches the server's verdict") {
  Pair pair;
  auto judge = [&](const test::Issued& issued) {
    return reason(pair.connect(Stranger{.identity = &issued}.make()).at_server);
  };
  auto uri = test::spiffe("default", "x");
  CHECK(judge(pair.ca.issue({.uris = {uri}})) == Reason::NONE);
  CHECK(judge(pair.ca.issue({.uris = {uri}, .not_after = WallClock::now() - std::chrono::seconds(5)})) ==
        Reason::PEER_CERT_INVALID);
  CHECK(judge(pair.ca.issue({.uris = {uri}, .not_before = WallClock::now() + std::chrono::hours(1)})) ==
        Reason::PEER_CERT_INVALID);
  CHECK(judge(pair.ca.issue({.uris = {uri, uri}})) == Reason::PEER_ID_INVALID);
  CHECK(judge(pair.ca.issue({.uris = {uri + std::string("\0x", 2)}})) == Reason::PEER_ID_INVALID);
  CHECK(judge(pair.ca.issue({.uris = {"spiffe://elsewhere/ns/default/sa/x"}})) == Reason::TRUST_DOMAIN);
  CHECK(judge(test::TestCa("other").issue({.uris = {uri}})) == Reason::PEER_CERT_INVALID);
  CHECK(judge(pair.ca.issue({.uris = {uri}, .key = test::KeyKind::rsa2048})) == Reason::NONE);
  CHECK(judge(pair.ca.issue({.uris = {uri}, .key = test::KeyKind::rsa1024})) != Reason::NONE);
}

TEST_CASE("a client refuses a server that is not the expected one") {
  Pair pair;
  pair.accepted = std::make_shared<const AcceptedPeers>(AcceptedPeers{{"default", "other"}});
  CHECK(reason(pair.connect().at_client) == Reason::PEER_ID_MISMATCH);
  pair.accepted = std::make_shared<const AcceptedPeers>(AcceptedPeers{{"default", "*"}});
  CHECK(reason(pair.connect().at_client) == Reason::NONE);
  pair.accepted = nullptr;
  CHECK(reason(pair.connect().at_client) == Reason::PEER_ID_MISMATCH);
}

TEST_CASE("without a credential in its time no handshake begins") {
  Pair pair;
  auto none = pair.server->accept(nullptr);
  REQUIRE_FALSE(none);
  CHECK(none.error().reason == Reason::NO_IDENTITY);
  auto expired = pair.ca.credential(
      {.uris = {test::spiffe("default", "x")}, .not_after = WallClock::now() - std::chrono::seconds(1)});
  auto late = pair.client->connect(expired, pair.accepted, "");
  REQUIRE_FALSE(late);
  CHECK(late.error().reason == Reason::NO_IDENTITY);
}

TEST_CASE("a second connection of the same pair is resumed and knows the same identities") {
  Pair pair;
  pair.session_key = "pod-a|10.0.0.1:15008";
  REQUIRE(pair.connect().at_server);
  CHECK(pair.client->sessions() == 1);
  for (int i = 0; i < 3; ++i) {
    Handshaken again = pair.connect();
    REQUIRE(again.at_server);
    REQUIRE(again.at_client);
    CHECK((*again.at_server)->resumed);
    CHECK((*again.at_client)->resumed);
    CHECK((*again.at_server)->identity->uri == test::spiffe("default", "client"));
    CHECK((*again.at_client)->identity->uri == test::spiffe("default", "server"));
  }
}

TEST_CASE("a session is resumed only for its own key, and not at all without one") {
  Pair pair;
  pair.session_key = "a";
  REQUIRE(pair.connect().at_server);
  pair.session_key = "b";
  Handshaken other = pair.connect();
  REQUIRE(other.at_server);
  CHECK_FALSE((*other.at_server)->resumed);
  pair.session_key = "";
  Handshaken none = pair.connect();
  REQUIRE(none.at_server);
  CHECK_FALSE((*none.at_server)->resumed);
  CHECK(pair.client->sessions() == 2);
  pair.client->forget_sessions("a");
  CHECK(pair.client->sessions() == 1);
}

TEST_CASE("a ticket of one server identity does not open another's") {
  Pair pair;
  pair.session_key = "a";
  pair.accepted = std::make_shared<const AcceptedPeers>(AcceptedPeers{{"default", "*"}});
  REQUIRE(pair.connect().at_server);
  pair.server_credential = pair.ca.credential("default", "other");
  Handshaken other = pair.connect();
  REQUIRE(other.at_client);
  CHECK_FALSE((*other.at_client)->resumed);
  CHECK((*other.at_client)->identity->uri == test::spiffe("default", "other"));
}

TEST_CASE("no session is resumed when the server's roots changed") {
  Pair pair;
  pair.session_key = "a";
  REQUIRE(pair.connect().at_server);
  auto both = TrustBundle::from_pem(pair.ca.root_pem() + test::TestCa("new").root_pem());
  pair.server_verifier.set_trust(*both);
  Handshaken full = pair.connect();
  REQUIRE(full.at_server);
  CHECK_FALSE((*full.at_server)->resumed);
  pair.server_verifier.set_trust(test::TestCa("new").trust());
  CHECK(reason(pair.connect().at_server) == Reason::PEER_CERT_INVALID);
}

TEST_CASE("no session is offered when the client's roots or accepted peers changed") {
  Pair pair;
  pair.session_key = "a";
  REQUIRE(pair.connect().at_server);
  pair.accepted = std::make_shared<const AcceptedPeers>(AcceptedPeers{{"default", "other"}});
  CHECK(reason(pair.connect().at_client) == Reason::PEER_ID_MISMATCH);
  CHECK(pair.client->sessions() == 0);
}

TEST_CASE("tickets open with the previous key and not with an older one") {
  Pair pair;
  pair.session_key = "a";
  REQUIRE(pair.connect().at_server);
  auto second = *TicketKeys::rotate(*pair.keys, pair.clock.wall());
  pair.server->set_ticket_keys(second);
  Handshaken still = pair.connect();
  REQUIRE(still.at_server);
  CHECK((*still.at_server)->resumed);
  pair.server->set_ticket_keys(*TicketKeys::rotate(*second, pair.clock.wall()));
  Handshaken full = pair.connect();
  REQUIRE(full.at_server);
  CHECK_FALSE((*full.at_server)->resumed);
}

TEST_CASE("ticket keys are due after their period, counted from when the current one was made") {
  ManualClock clock;
  auto first = *TicketKeys::random(clock.wall());
  CHECK_FALSE(first->due(clock.wall()));
  clock.advance(TicketKeys::kPeriod - seconds(1));
  CHECK_FALSE(first->due(clock.wall()));
  clock.advance(seconds(1));
  CHECK(first->due(clock.wall()));
  auto second = *TicketKeys::rotate(*first, clock.wall());
  CHECK(second->previous == first->current);
  CHECK_FALSE(second->current == first->current);
  CHECK_FALSE(second->due(clock.wall()));
  CHECK(second->due(clock.wall() - std::chrono::hours(1)));  // the clock was set back
}

TEST_CASE("a foreign client gets no ticket") {
  Pair pair;
  auto issued = pair.ca.issue({.uris = {test::spiffe("default", "ztunnel")}});
  Handshaken done = pair.connect(Stranger{.identity = &issued}.make());
  REQUIRE(done.at_server);
  CHECK_FALSE(send_ticket(done.server.get()));
  char byte = 0;
  SSL_read(done.client.get(), &byte, 1);
  CHECK_FALSE(SSL_SESSION_has_ticket(SSL_get_session(done.client.get())));
}

TEST_CASE("another worker's context opens the same tickets") {
  Pair pair;
  pair.session_key = "a";
  REQUIRE(pair.connect().at_server);
  pair.server = *ServerContext::create(pair.server_verifier, pair.keys);
  Handshaken again = pair.connect();
  REQUIRE(again.at_server);
  CHECK((*again.at_server)->resumed);
}

TEST_CASE("garbage instead of a ClientHello is TLS_FAILED") {
  Pair pair;
  auto ssl = *pair.server->accept(pair.server_credential);
  SSL_set_bio(ssl.get(), BIO_new_mem_buf("GET / HTTP/1.1\r\nHost: x\r\n\r\n", -1), BIO_new(BIO_s_mem()));
  CHECK(SSL_do_handshake(ssl.get()) != 1);
  CHECK(handshake_error(ssl.get()).reason == Reason::TLS_FAILED);
  CHECK(peer_of(ssl.get()) == nullptr);
}

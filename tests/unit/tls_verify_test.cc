#include <doctest/doctest.h>

#include <chrono>

#include "support/certs.h"
#include "tls/verify.h"

using namespace nodemesh;
using namespace nodemesh::tls;
using namespace std::chrono_literals;

namespace {

struct At final : Clock {
  WallClock::time_point time = WallClock::now();
  WallClock::time_point wall() const override { return time; }
};

struct Fixture {
  At clock;
  test::TestCa ca;
  Verifier verifier{clock, {"cluster.local", "old.example"}};
  Fixture() { verifier.set_trust(ca.trust()); }

  Reason judge(const test::LeafOptions& options, PeerRole role = PeerRole::client) {
    return judge(ca.issue(options), role);
  }
  Reason judge(const test::Issued& issued, PeerRole role = PeerRole::client) {
    auto peer = verifier.verify(issued.leaf.get(), nullptr, role);
    return peer ? Reason::NONE : peer.error().reason;
  }
};

std::string web() {
  return test::spiffe("default", "web");
}

}  // namespace

TEST_CASE("a SPIFFE id is accepted in its exact form only") {
  auto id = SpiffeId::parse("spiffe://cluster.local/ns/shop/sa/cart.v2");
  REQUIRE(id);
  CHECK(id->trust_domain == "cluster.local");
  CHECK(id->ns == "shop");
  CHECK(id->service_account == "cart.v2");
  CHECK(id->uri() == "spiffe://cluster.local/ns/shop/sa/cart.v2");
  for (std::string_view bad : {"",
                               "spiffe://",
                               "spiffe://cluster.local",
                               "spiffe://cluster.local/ns/shop/sa/",
                               "spiffe://cluster.local/ns//sa/x",
                               "spiffe:///ns/shop/sa/x",
                               "spiffe://cluster.local/ns/shop/sa/x/",
                               "spiffe://cluster.local/ns/shop/sa/x/y",
                               "SPIFFE://cluster.local/ns/shop/sa/x",
                               "spiffe://Cluster.local/ns/shop/sa/x",
                               "spiffe://cluster.local/NS/shop/sa/x",
                               "spiffe://cluster.local/ns/shop/sa/X",
                               "spiffe://cluster.local:80/ns/shop/sa/x",
                               "spiffe://u@cluster.local/ns/shop/sa/x",
                               "spiffe://cluster.local/ns/shop/sa/x?q",
                               "spiffe://cluster.local/ns/shop/sa/x#f",
                               "spiffe://cluster.local/ns/sh%6fp/sa/x",
                               "spiffe://cluster.local/ns/shop.x/sa/x",
                               "spiffe://cluster.local/ns/-shop/sa/x",
                               "spiffe://cluster.local/ns/shop/sa/a..b",
                               "spiffe://cluster.local/ns/shop/sa/*",
                               "https://cluster.local/ns/shop/sa/x",
                               " spiffe://cluster.local/ns/shop/sa/x"}) {
    CAPTURE(bad);
    auto parsed = SpiffeId::parse(bad);
    REQUIRE_FALSE(parsed);
    CHECK(parsed.error().reason == Reason::PEER_ID_INVALID);
  }
  CHECK_FALSE(SpiffeId::parse(std::string("spiffe://cluster.local/ns/shop/sa/x\0evil", 39)));
  CHECK_FALSE(SpiffeId::parse("spiffe://" + std::string(3000, 'a') + "/ns/shop/sa/x"));
}

TEST_CASE("an accepted peer may name any service account of a namespace") {
  SpiffeId web{"cluster.local", "default", "web"};
  CHECK(any_matches({{"default", "web"}}, web));
  CHECK(any_matches({{"other", "web"}, {"default", "*"}}, web));
  CHECK_FALSE(any_matches({{"other", "*"}}, web));
  CHECK_FALSE(any_matches({}, web));
}

TEST_CASE_FIXTURE(Fixture, "a leaf of our root with one SPIFFE id is accepted") {
  auto issued = ca.issue({.uris = {web()}});
  auto peer = verifier.verify(issued.leaf.get(), nullptr, PeerRole::client);
  REQUIRE(peer);
  CHECK((*peer)->uri == web());
  CHECK((*peer)->id.service_account == "web");
  CHECK((*peer)->trust_generation == ca.trust()->generation());
}

TEST_CASE_FIXTURE(Fixture, "no certificate is PEER_CERT_MISSING") {
  auto peer = verifier.verify(nullptr, nullptr, PeerRole::client);
  REQUIRE_FALSE(peer);
  CHECK(peer.error().reason == Reason::PEER_CERT_MISSING);
}

TEST_CASE_FIXTURE(Fixture, "certificates outside their time are refused") {
  CHECK(judge({.uris = {web()}, .not_after = clock.time - 1s}) == Reason::PEER_CERT_INVALID);
  CHECK(judge({.uris = {web()}, .not_before = clock.time + 60s}) == Reason::PEER_CERT_INVALID);
}

TEST_CASE_FIXTURE(Fixture, "a chain to another root is refused") {
  test::TestCa other("other root");
  CHECK(judge(other.issue({.uris = {web()}})) == Reason::PEER_CERT_INVALID);
  // The same name is not the same root.
  test::TestCa impostor("test root");
  CHECK(judge(impostor.issue({.uris = {web()}})) == Reason::PEER_CERT_INVALID);
}

TEST_CASE_FIXTURE(Fixture, "an intermediate must come with the leaf") {
  test::TestCa intermediate(ca, "intermediate");
  auto issued = intermediate.issue({.uris = {web()}});
  CHECK(judge(issued) == Reason::PEER_CERT_INVALID);
  auto all = parse_certificates(issued.chain_pem);
  REQUIRE(all);
  REQUIRE(all->size() == 2);
  X509StackPtr chain(sk_X509_new_null());
  sk_X509_push(chain.get(), (*all)[1].release());
  CHECK(verifier.verify(issued.leaf.get(), chain.get(), PeerRole::client));
}

TEST_CASE_FIXTURE(Fixture, "the extended key usage must fit the role") {
  CHECK(judge({.uris = {web()}, .client_auth = false}, PeerRole::client) == Reason::PEER_CERT_INVALID);
  CHECK(judge({.uris = {web()}, .server_auth = false}, PeerRole::server) == Reason::PEER_CERT_INVALID);
  CHECK(judge({.uris = {web()}, .server_auth = false}, PeerRole::client) == Reason::NONE);
  // The role is part of what is remembered: a client-only leaf seen as client is not thereby a server.
  auto issued = ca.issue({.uris = {web()}, .server_auth = false});
  CHECK(judge(issued, PeerRole::client) == Reason::NONE);
  CHECK(judge(issued, PeerRole::server) == Reason::PEER_CERT_INVALID);
}

TEST_CASE_FIXTURE(Fixture, "exactly one URI name is needed") {
  CHECK(judge({.uris = {}}) == Reason::PEER_ID_INVALID);
  CHECK(judge({.uris = {}, .dns = {"web.default.svc"}}) == Reason::PEER_ID_INVALID);
  CHECK(judge({.uris = {web(), test::spiffe("default", "admin")}}) == Reason::PEER_ID_INVALID);
  CHECK(judge({.uris = {web(), "https://example.com"}}) == Reason::PEER_ID_INVALID);
  CHECK(judge({.uris = {web()}, .dns = {"web.default.svc"}}) == Reason::NONE);
}

TEST_CASE_FIXTURE(Fixture, "a NUL in the name ends nothing") {
  CHECK(judge({.uris = {web() + std::string("\0.evil", 6)}}) == Reason::PEER_ID_INVALID);
  CHECK(judge({.uris = {std::string(1, '\0') + web()}}) == Reason::PEER_ID_INVALID);
}

TEST_CASE_FIXTURE(Fixture, "only our trust domains and their aliases are ours") {
  CHECK(judge({.uris = {"spiffe://evil.example/ns/default/sa/web"}}) == Reason::TRUST_DOMAIN);
  CHECK(judge({.uris = {"spiffe://cluster.local.evil/ns/default/sa/web"}}) == Reason::TRUST_DOMAIN);
  CHECK(judge({.uris = {"spiffe://old.example/ns/default/sa/web"}}) == Reason::NONE);
  auto issued = ca.issue({.uris = {"spiffe://old.example/ns/default/sa/web"}});
  CHECK(judge(issued) == Reason::NONE);
  verifier.set_trust_domains({"cluster.local"});
  CHECK(judge(issued) == Reason::TRUST_DOMAIN);
}

TEST_CASE_FIXTURE(Fixture, "keys: P-256, P-384 and RSA 2048 pass, shorter RSA and Ed25519 do not") {
  CHECK(judge({.uris = {web()}, .key = test::KeyKind::p384}) == Reason::NONE);
  CHECK(judge({.uris = {web()}, .key = test::KeyKind::rsa2048}) == Reason::NONE);
  CHECK(judge({.uris = {web()}, .key = test::KeyKind::rsa1024}) == Reason::PEER_CERT_INVALID);
  CHECK(judge({.uris = {web()}, .key = test::KeyKind::ed25519}) == Reason::PEER_CERT_INVALID);
}

TEST_CASE_FIXTURE(Fixture, "a verified leaf is remembered, until it expires or the roots change") {
  auto issued = ca.issue({.uris = {web()}, .not_after = clock.time + 60s});
  CHECK(judge(issued) == Reason::NONE);
  CHECK(judge(issued) == Reason::NONE);
  CHECK(verifier.counters().verified == 1);
  CHECK(verifier.counters().cached == 1);
  clock.time += 61s;
  CHECK(judge(issued) == Reason::PEER_CERT_INVALID);
  clock.time -= 61s;
  CHECK(judge(issued) == Reason::NONE);
  test::TestCa other("other root");
  verifier.set_trust(other.trust());
  CHECK(judge(issued) == Reason::PEER_CERT_INVALID);
  verifier.set_trust(nullptr);
  CHECK(judge(issued) == Reason::PEER_CERT_INVALID);
}

TEST_CASE_FIXTURE(Fixture,
                  "an open connection outlives its certificate when roots are added, not when its own go") {
  auto issued = ca.issue({.uris = {web()}, .not_after = clock.time + 60s});
  auto known = verifier.verify(issued.leaf.get(), nullptr, PeerRole::client);
  REQUIRE(known);
  clock.time += 3600s;
  test::TestCa other("other root");
  verifier.set_trust(*TrustBundle::from_pem(ca.root_pem() + other.root_pem()));
  CHECK(verifier.verify_again(**known, issued.leaf.get(), nullptr, PeerRole::client));
  CHECK(judge(issued) == Reason::PEER_CERT_INVALID);  // a new one it does not make
  verifier.set_trust(other.trust());
  CHECK_FALSE(verifier.verify_again(**known, issued.leaf.get(), nullptr, PeerRole::client));
  verifier.set_trust(nullptr);
  CHECK_FALSE(verifier.verify_again(**known, issued.leaf.get(), nullptr, PeerRole::client));
}

TEST_CASE("the memory of verified leaves is bounded") {
  At clock;
  test::TestCa ca;
  Verifier verifier(clock, {"cluster.local"}, 4);
  verifier.set_trust(ca.trust());
  std::vector<test::Issued> leaves;
  for (int i = 0; i < 6; ++i)
    leaves.push_back(ca.issue({.uris = {test::spiffe("default", "w" + std::to_string(i))}}));
  for (const auto& leaf : leaves) REQUIRE(verifier.verify(leaf.leaf.get(), nullptr, PeerRole::client));
  CHECK(verifier.counters().verified == 6);
  REQUIRE(verifier.verify(leaves[5].leaf.get(), nullptr, PeerRole::client));
  CHECK(verifier.counters().cached == 1);
  REQUIRE(verifier.verify(leaves[0].leaf.get(), nullptr, PeerRole::client));
  CHECK(verifier.counters().verified == 7);
}

TEST_CASE("an identity that was verified before the roots changed is not valid any more") {
  At clock;
  test::TestCa ca, other("other root");
  Verifier verifier(clock, {"cluster.local"});
  verifier.set_trust(ca.trust());
  auto issued = ca.issue({.uris = {web()}});
  auto peer = verifier.verify(issued.leaf.get(), nullptr, PeerRole::client);
  REQUIRE(peer);
  CHECK(verifier.still_valid(**peer));
  clock.time += 25h;
  CHECK_FALSE(verifier.still_valid(**peer));
  clock.time -= 25h;
  verifier.set_trust(other.trust());
  CHECK_FALSE(verifier.still_valid(**peer));
}

TEST_CASE("credentials name what is wrong with them") {
  test::TestCa ca;
  auto good = ca.issue({.uris = {web()}}), other = ca.issue({.uris = {web()}});
  auto error = [](const Result<std::shared_ptr<const Credential>>& result) {
    return result ? "" : result.error().message;
  };
  CHECK(Credential::from_pem(good.key_pem, good.chain_pem));
  CHECK(error(Credential::from_pem("", good.chain_pem)).find("private key") != std::string::npos);
  CHECK(error(Credential::from_pem(good.key_pem, "")).find("no CERTIFICATE block") != std::string::npos);
  CHECK(error(Credential::from_pem(good.key_pem, other.chain_pem)).find("not for this private key") !=
        std::string::npos);
  std::string broken = good.chain_pem;
  broken[broken.find("\n") + 20] = '!';
  CHECK(error(Credential::from_pem(good.key_pem, broken)).find("does not parse") != std::string::npos);
  auto weak = ca.issue({.uris = {web()}, .key = test::KeyKind::rsa1024});
  CHECK(error(Credential::from_pem(weak.key_pem, weak.chain_pem)).find("1024 bits") != std::string::npos);
}

TEST_CASE("the roots are not sent, intermediates are") {
  test::TestCa root;
  test::TestCa intermediate(root, "intermediate");
  auto issued = intermediate.issue({.uris = {web()}});
  auto credential = Credential::from_pem(issued.key_pem, issued.chain_pem + root.root_pem());
  REQUIRE(credential);
  CHECK(sk_X509_num((*credential)->intermediates()) == 1);
}

TEST_CASE("the same roots are the same generation, in any order and however often") {
  test::TestCa a("a"), b("b");
  auto ab = TrustBundle::from_pem(a.root_pem() + b.root_pem()),
       ba = TrustBundle::from_pem(b.root_pem() + a.root_pem() + b.root_pem());
  REQUIRE(ab);
  REQUIRE(ba);
  CHECK((*ab)->size() == 2);
  CHECK((*ab)->generation() == (*ba)->generation());
  CHECK((*ab)->generation() != a.trust()->generation());
  CHECK_FALSE(TrustBundle::from_pem("not a certificate"));
}

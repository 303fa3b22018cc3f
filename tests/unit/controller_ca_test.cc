// What the authority of a cluster signs with: reading Secrets, refusing broken ones, rotating roots, and the
// replicas' agreement, against an API server in memory.
#include <doctest/doctest.h>
#include <openssl/ec.h>
#include <openssl/rsa.h>
#include <openssl/x509v3.h>

#include "controller/cluster_ca.h"
#include "controller/metrics.h"
#include "controller/server_certificate.h"
#include "controller/trust_bundle.h"
#include "controller/x509_build.h"
#include "support/certs.h"
#include "unit/controller_api.h"

using namespace nodemesh;
using namespace nodemesh::controller;
using namespace std::chrono_literals;

namespace {

constexpr auto kSecret = "/api/v1/namespaces/mesh/secrets/nodemesh-ca";
constexpr auto kCacerts = "/api/v1/namespaces/mesh/secrets/cacerts";
constexpr auto kBundle = "/api/v1/namespaces/mesh/configmaps/nodemesh-root-cert";

// A certificate that may sign, of any key, by itself or by another.
struct Made {
  tls::PkeyPtr key;
  tls::X509Ptr certificate;
  std::string pem() const { return tls::to_pem(certificate.get()); }
  std::string key_pem() const { return tls::to_pem(key.get()); }
};
struct Wish {
  const char* name = "root";
  const Made* issuer = nullptr;
  const char* constraints = "critical,CA:TRUE";
  const char* usage = "critical,keyCertSign,cRLSign";
  std::chrono::hours life{24 * 365};
  EVP_PKEY* key = nullptr;  // default: a new P-256 key
};
Made make(WallClock::time_point now, const Wish& wish) {
  Made out;
  out.key.reset(wish.key != nullptr ? wish.key : EVP_EC_gen("P-256"));
  out.certificate.reset(X509_new());
  X509* raw = out.certificate.get();
  X509* issuer = wish.issuer != nullptr ? wish.issuer->certificate.get() : raw;
  X509_set_version(raw, 2);
  set_serial(raw);
  set_times(raw, now - 1h, now + wish.life);
  X509_NAME_add_entry_by_txt(X509_get_subject_name(raw), "CN", MBSTRING_ASC,
                             reinterpret_cast<const unsigned char*>(wish.name), -1, -1, 0);
  X509_set_issuer_name(raw, X509_get_subject_name(issuer));
  X509_set_pubkey(raw, out.key.get());
  add_extension(raw, issuer, NID_basic_constraints, wish.constraints);
  add_extension(raw, issuer, NID_key_usage, wish.usage);
  add_extension(raw, issuer, NID_subject_key_identifier, "hash");
  REQUIRE(X509_sign(raw, (wish.issuer != nullptr ? wish.issuer->key : out.key).get(), EVP_sha256()) > 0);
  return out;
}

std::string load_error(const CaMaterial& material, WallClock::time_point now) {
  auto signer = Signer::load(material, now);
  return signer ? "" : signer.error().message;
}

Json secret_of(const CaMaterial& material) {
  return {{"metadata", {{"name", "cacerts"}}},
          {"data", write_secret_data({{"ca-cert.pem", material.cert_pem},
                                      {"ca-key.pem", material.key_pem},
                                      {"cert-chain.pem", material.chain_pem},
                                      {"root-cert.pem", material.roots_pem}})}};
}

CaMaterial plain(const Made& root) {
  return {root.pem(), root.key_pem(), "", root.pem()};
}

int roots_in(const std::string& pem) {
  auto certificates = tls::parse_certificates(pem);
  return certificates ? static_cast<int>(certificates->size()) : -1;
}

struct Replica {
  Replica(io::Reactor& reactor, const Clock& clock, test::FakeApi& api)
      : authority(clock, {}), ca(reactor, clock, api, authority, {.ns = "mesh"}, [this] { ++changes; }) {}
  CertificateAuthority authority;
  int changes = 0;
  ClusterCa ca;
};

struct Fixture {
  io::Reactor reactor;
  ManualClock clock;
  test::FakeApi api;
  Replica a{reactor, clock, api}, b{reactor, clock, api};
  // One look at the Secrets, with what follows from it.
  void look(Replica& who) {
    who.ca.start();
    api.answer_all();
  }
  std::string signs_with(Replica& who) {
    return who.authority.signer() ? who.authority.signer()->anchor_pem() : "";
  }
  std::string leaf_chain(Replica& who) {
    auto key = tls::make_p256_key();
    auto issued = who.authority.sign(key->get(), {"cluster.local", "shop", "web"}, seconds(0));
    REQUIRE(issued);
    std::string out;
    for (size_t i = 0; i + 1 < issued->chain.size(); ++i) out += issued->chain[i];
    return out;
  }
  // Would a peer that trusts `bundle` accept what `who` signs now?
  bool accepted(Replica& who, const std::string& bundle) {
    auto chain = tls::parse_certificates(leaf_chain(who)), roots = tls::parse_certificates(bundle);
    tls::StorePtr store(X509_STORE_new());
    for (auto& root : *roots) X509_STORE_add_cert(store.get(), root.get());
    tls::X509StackPtr rest(sk_X509_new_null());
    for (size_t i = 1; i < chain->size(); ++i) sk_X509_push(rest.get(), (*chain)[i].release());
    tls::StoreCtxPtr context(X509_STORE_CTX_new());
    X509_STORE_CTX_init(context.get(), store.get(), chain->front().get(), rest.get());
    X509_VERIFY_PARAM_set_time(X509_STORE_CTX_get0_param(context.get()), WallClock::to_time_t(clock.wall()));
    return X509_verify_cert(context.get()) == 1;
  }
};

}  // namespace

TEST_CASE_FIXTURE(Fixture, "plugged-in keys of EC and RSA sign leaves that their roots vouch for") {
  auto now = clock.wall();
  auto root = make(now, {.name = "operator root"});
  for (EVP_PKEY* key : {EVP_EC_gen("P-256"), EVP_EC_gen("P-384"), EVP_RSA_gen(2048)}) {
    auto issuer = make(now, {.name = "mesh issuer", .issuer = &root, .key = key});
    // Istio's cert-chain.pem repeats the issuer and may end in the root.
    CaMaterial material{issuer.pem(), issuer.key_pem(), issuer.pem() + root.pem(), root.pem()};
    auto signer = Signer::load(material, now);
    REQUIRE_MESSAGE(signer, (signer ? "" : signer.error().message));
    CHECK((*signer)->intermediates().size() == 1);
    CHECK((*signer)->anchor_pem() == root.pem());
    a.authority.use(*signer, (*signer)->roots_pem());
    CHECK(accepted(a, root.pem()));
    CHECK_FALSE(accepted(a, make(now, {.name = "operator root"}).pem()));
  }
}

TEST_CASE_FIXTURE(Fixture, "a chain of two intermediates is sent one by one, without the root") {
  auto now = clock.wall();
  auto root = make(now, {.name = "r"});
  auto middle = make(now, {.name = "m", .issuer = &root, .life = 48h});
  auto issuer = make(now, {.name = "i", .issuer = &middle});
  auto signer = Signer::load({issuer.pem(), issuer.key_pem(), middle.pem(), root.pem()}, now);
  REQUIRE(signer);
  CHECK((*signer)->intermediates() == std::vector{issuer.pem(), middle.pem()});
  CHECK((*signer)->not_after() == now + 48h);  // the shortest of the chain bounds every leaf
  a.authority.use(*signer, (*signer)->roots_pem());
  CHECK(accepted(a, root.pem()));
}

TEST_CASE_FIXTURE(Fixture, "signing material that is no good is refused with the file and the fix") {
  auto now = clock.wall();
  auto root = make(now, {.name = "r"});
  auto other = make(now, {.name = "r"});
  auto good = plain(root);
  auto with = [&](auto change) {
    CaMaterial material = good;
    change(material);
    return load_error(material, now);
  };
  auto says = [](const std::string& error, const char* part) { return error.find(part) != error.npos; };
  CHECK(load_error(good, now).empty());
  CHECK(says(with([](CaMaterial& m) { m.key_pem = "garbage"; }), "ca-key.pem: private key does not parse"));
  CHECK(says(with([](CaMaterial& m) { m.cert_pem = ""; }), "ca-cert.pem: holds no PEM certificate"));
  CHECK(says(with([](CaMaterial& m) { m.roots_pem = "x"; }), "root-cert.pem: holds no PEM certificate"));
  CHECK(says(with([](CaMaterial& m) {
               m.chain_pem = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
             }),
             "cert-chain.pem"));
  CHECK(says(with([&](CaMaterial& m) { m.key_pem = other.key_pem(); }), "not for the key in ca-key.pem"));
  CHECK(says(with([&](CaMaterial& m) { m.roots_pem = other.pem(); }), "no root of root-cert.pem vouches"));
  CHECK(says(load_error(plain(make(now, {.constraints = "critical,CA:FALSE"})), now), "CA:TRUE"));
  CHECK(says(load_error(plain(make(now, {.usage = "critical,digitalSignature"})), now), "keyCertSign"));
  CHECK(says(load_error(plain(make(now, {.key = EVP_RSA_gen(1024)})), now), "2048 to 8192"));
  CHECK(says(load_error(good, now + 24h * 400), "expired"));
  CHECK(says(load_error(good, now - 2h), "not yet valid"));
}

TEST_CASE("cacerts is read in Istio's and in cert-manager's form, and says which key is missing") {
  CHECK(read_cacerts({{"ca-cert.pem", "c"}, {"ca-key.pem", "k"}, {"root-cert.pem", "r"}})->chain_pem.empty());
  auto manager = read_cacerts({{"tls.crt", "c"}, {"tls.key", "k"}, {"ca.crt", "r"}});
  REQUIRE(manager);
  CHECK(manager->roots_pem == "r");
  CHECK(read_cacerts({{"ca-cert.pem", "c"}, {"ca-key.pem", "k"}}).error().message.find("root-cert.pem") !=
        std::string::npos);
  CHECK(read_cacerts({{"tls.crt", "c"}, {"ca.crt", "k"}}).error().message.find("tls.key") !=
        std::string::npos);
  CHECK(read_cacerts({}).error().message.find("ca-cert.pem") != std::string::npos);
}

TEST_CASE("a Secret's values survive the way there and back, and what is no base64 is refused by its key") {
  for (const std::string& bytes : {std::string(), std::string("a"), std::string("ab"), std::string("abc"),
                                   std::string("\0\xff\n", 3), std::string(5000, 'x')}) {
    auto back = read_secret_data({{"data", write_secret_data({{"key", bytes}})}});
    REQUIRE(back);
    CHECK(back->at("key") == bytes);
  }
  for (const Json& bad : {Json("a"), Json("@@@@"), Json(7), Json(nullptr)})
    CHECK(read_secret_data({{"data", {{"key", bad}}}}).error().message == "data[key] is no base64");
  CHECK(read_secret_data({{"data", "x"}})->empty());
}

TEST_CASE_FIXTURE(Fixture, "two replicas that start at once agree on one root") {
  a.ca.start();
  b.ca.start();
  for (int i = 0; i < 4; ++i) api.answer();  // both have seen that there is nothing
  api.answer_all();
  REQUIRE(a.authority.ready());
  REQUIRE(b.authority.ready());
  CHECK(api.count("POST") == 2);
  CHECK(signs_with(a) == signs_with(b));
  CHECK(accepted(a, b.authority.trust_bundle_pem()));
  CHECK(a.changes == 1);
}

TEST_CASE_FIXTURE(Fixture, "an authority that an operator plugged in is used from the first start") {
  auto root = make(clock.wall(), {.name = "operator"});
  api.put(kCacerts, secret_of(plain(root)));
  look(a);
  CHECK(signs_with(a) == root.pem());
  CHECK(a.ca.state()->plugged_in);
}

TEST_CASE_FIXTURE(Fixture, "a broken cacerts at the first start is not answered with a root of our own") {
  api.put(kCacerts, {{"metadata", {{"name", "cacerts"}}}, {"data", {{"ca-cert.pem", "eA=="}}}});
  look(a);
  CHECK_FALSE(a.authority.ready());
  CHECK(a.ca.trouble().find("cacerts is refused: ca-key.pem is missing") != std::string::npos);
  CHECK(api.count("POST") == 0);
  api.broken[kCacerts] = 403;  // and neither is one that may not be read
  look(a);
  CHECK_FALSE(a.authority.ready());
  CHECK(a.ca.trouble().find("cannot be read") != std::string::npos);
  CHECK(api.count("POST") == 0);
}

TEST_CASE_FIXTURE(Fixture,
                  "a change of cacerts that is broken leaves the last good one in force, and says so") {
  auto root = make(clock.wall(), {.name = "operator"});
  api.put(kCacerts, secret_of(plain(root)));
  a.ca.begin();
  api.answer_all();
  auto bad = plain(root);
  bad.key_pem = make(clock.wall(), {}).key_pem();
  api.put(kCacerts, secret_of(bad));
  look(a);
  CHECK(signs_with(a) == root.pem());
  CHECK(a.ca.trouble().find("not for the key") != std::string::npos);
  CHECK(api.count("PUT") == 0);
  api.objects.erase(kCacerts);  // removing it changes nothing either
  look(a);
  CHECK(signs_with(a) == root.pem());
  CHECK(a.ca.trouble().empty());
  CHECK(api.count("PUT") == 0);
}

TEST_CASE_FIXTURE(Fixture, "a damaged nodemesh-ca leaves what was in force, and is not overwritten") {
  a.ca.begin();
  api.answer_all();
  std::string before = signs_with(a);
  api.objects[kSecret]["data"].erase("ca-key.pem");
  look(a);
  CHECK(signs_with(a) == before);
  CHECK(a.ca.trouble().find("ca-key.pem is missing") != std::string::npos);
  api.broken[kSecret] = 0;
  look(a);
  CHECK(signs_with(a) == before);
  CHECK(a.authority.ready());
  CHECK(api.count("PUT") == 0);
}

TEST_CASE_FIXTURE(
    Fixture, "a new root is announced for a whole lifetime before it signs, and the old one outlives it") {
  auto old_root = make(clock.wall(), {.name = "old"}), new_root = make(clock.wall(), {.name = "new"});
  api.put(kCacerts, secret_of(plain(old_root)));
  a.ca.begin();
  api.answer_all();
  look(b);
  std::string at_first = a.authority.trust_bundle_pem();
  api.put(kCacerts, secret_of(plain(new_root)));
  look(a);
  look(b);
  // Announced: signed by the old, both trusted.
  CHECK(signs_with(a) == old_root.pem());
  CHECK(accepted(b, at_first));
  std::string between = b.authority.trust_bundle_pem();
  CHECK(roots_in(between) == 2);
  clock.advance(23h + 59min);
  look(a);
  CHECK(signs_with(a) == old_root.pem());
  std::string last_of_old = leaf_chain(a);
  clock.advance(2min);
  look(a);
  // Switched: who learned the bundle in between accepts it, and who has the new one accepts the old leaf.
  CHECK(signs_with(a) == new_root.pem());
  CHECK(accepted(a, between));
  CHECK_FALSE(accepted(a, at_first));
  CHECK(roots_in(a.authority.trust_bundle_pem()) == 2);
  CHECK(signs_with(b) ==
        old_root.pem());  // the other replica has not looked yet, and what it signs is accepted
  CHECK(accepted(b, a.authority.trust_bundle_pem()));
  clock.advance(24h);
  look(a);
  CHECK(roots_in(a.authority.trust_bundle_pem()) == 2);
  clock.advance(10min);
  look(a);
  look(b);
  CHECK(a.authority.trust_bundle_pem() == new_root.pem());
  CHECK(b.authority.trust_bundle_pem() == new_root.pem());
  CHECK(accepted(b, new_root.pem()));
}

TEST_CASE_FIXTURE(Fixture, "a nodemesh-ca that is deleted under a running controller comes back as it was") {
  look(a);
  look(b);
  std::string before = signs_with(a);
  api.objects.erase(kSecret);
  api.broken[kCacerts] = 403;
  look(b);
  CHECK(api.objects.contains(kSecret));
  look(a);
  CHECK(signs_with(a) == before);
  CHECK(signs_with(b) == before);
  CHECK(roots_in(b.authority.trust_bundle_pem()) == 1);
}

TEST_CASE_FIXTURE(Fixture,
                  "a Secret that cannot be written stays in trouble until a write succeeds or is not ours") {
  look(a);
  a.ca.begin();
  api.answer_all();
  REQUIRE(a.ca.trouble().empty());
  api.put(kCacerts, secret_of(plain(make(clock.wall(), {.name = "new"}))));
  api.refuse_writes = 403;
  look(a);
  CHECK(a.ca.trouble() == "Secret mesh/nodemesh-ca cannot be written: broken by the test");
  a.ca.start();
  while (!api.asked.empty()) {  // the next round's reads are fine, and hide nothing
    CHECK(a.ca.trouble() == "Secret mesh/nodemesh-ca cannot be written: broken by the test");
    api.answer();
  }
  CHECK(a.ca.trouble() == "Secret mesh/nodemesh-ca cannot be written: broken by the test");
  api.broken[kCacerts] = 403;  // both are said
  look(a);
  CHECK(a.ca.trouble() == "Secret mesh/cacerts cannot be read: broken by the test");  // so no step is due
  api.broken.clear();
  look(a);
  CHECK(a.ca.trouble().find("cannot be written") != std::string::npos);
  a.ca.end();  // another leads: what cannot be written is not ours to write
  look(a);
  CHECK(a.ca.trouble().empty());
  a.ca.begin();
  api.answer_all();
  CHECK(a.ca.trouble().find("cannot be written") != std::string::npos);
  api.refuse_writes = 0;
  look(a);
  CHECK(a.ca.trouble().empty());
  CHECK(a.ca.state()->next);
}

TEST_CASE_FIXTURE(Fixture, "only the leader moves the authority on") {
  look(a);
  api.put(kCacerts, secret_of(plain(make(clock.wall(), {.name = "new"}))));
  look(a);
  clock.advance(48h);
  look(a);
  CHECK(api.count("PUT") == 0);
  CHECK_FALSE(a.ca.state()->next);
  a.ca.begin();
  api.answer_all();
  CHECK(a.ca.state()->next);
  a.ca.end();
  clock.advance(48h);
  look(a);
  CHECK(a.ca.state()->next);
}

TEST_CASE_FIXTURE(Fixture, "two leaders for a moment: the second write is refused and the first one stands") {
  a.ca.begin();
  api.answer_all();
  b.ca.begin();
  api.answer_all();
  api.put(kCacerts, secret_of(plain(make(clock.wall(), {.name = "new"}))));
  a.ca.start();
  b.ca.start();
  api.answer_all();
  CHECK(api.count("PUT") == 2);
  CHECK(a.ca.trouble().empty());
  CHECK(a.ca.state() == b.ca.state());
  CHECK(roots_in(a.authority.trust_bundle_pem()) == 2);
}

TEST_CASE_FIXTURE(Fixture, "a new issuer below a root that is trusted for long signs at once") {
  auto root = make(clock.wall(), {.name = "operator"});
  auto first = make(clock.wall(), {.name = "issuer 1", .issuer = &root});
  auto second = make(clock.wall(), {.name = "issuer 2", .issuer = &root});
  api.put(kCacerts, secret_of({first.pem(), first.key_pem(), "", root.pem()}));
  a.ca.begin();
  api.answer_all();
  clock.advance(25h);
  std::string bundle = a.authority.trust_bundle_pem();
  api.put(kCacerts, secret_of({second.pem(), second.key_pem(), "", root.pem()}));
  look(a);
  CHECK(a.authority.signer()->material().cert_pem == second.pem());
  CHECK(accepted(a, bundle));
  CHECK(a.authority.trust_bundle_pem() == bundle);
}

TEST_CASE_FIXTURE(Fixture, "an announcement that the operator takes back is dropped") {
  auto old_root = make(clock.wall(), {.name = "old"});
  api.put(kCacerts, secret_of(plain(old_root)));
  a.ca.begin();
  api.answer_all();
  api.put(kCacerts, secret_of(plain(make(clock.wall(), {.name = "new"}))));
  look(a);
  REQUIRE(a.ca.state()->next);
  api.put(kCacerts, secret_of(plain(old_root)));
  look(a);
  CHECK_FALSE(a.ca.state()->next);
  clock.advance(72h);
  look(a);
  CHECK(signs_with(a) == old_root.pem());
  CHECK(a.authority.trust_bundle_pem() == old_root.pem());
}

TEST_CASE_FIXTURE(Fixture,
                  "a root that is removed from cacerts too early is trusted until its leaves have ended") {
  auto one = make(clock.wall(), {.name = "one"}), two = make(clock.wall(), {.name = "two"});
  auto both = plain(one);
  both.roots_pem += two.pem();
  api.put(kCacerts, secret_of(both));
  a.ca.begin();
  api.answer_all();
  CHECK(roots_in(a.authority.trust_bundle_pem()) == 2);
  api.put(kCacerts, secret_of(plain(one)));
  look(a);
  CHECK(roots_in(a.authority.trust_bundle_pem()) == 2);
  clock.advance(25h);
  look(a);
  CHECK(a.authority.trust_bundle_pem() == one.pem());
}

TEST_CASE_FIXTURE(Fixture,
                  "our own root is replaced in the last fifth of its life, and when it is asked for") {
  a.ca.begin();
  api.answer_all();
  std::string first = signs_with(a);
  clock.advance(24h * 2900);
  look(a);
  CHECK_FALSE(a.ca.state()->next);
  clock.advance(24h * 30);
  look(a);
  REQUIRE(a.ca.state()->next);
  CHECK(signs_with(a) == first);
  clock.advance(25h);
  look(a);
  std::string second = signs_with(a);
  CHECK(second != first);
  clock.advance(25h);
  look(a);
  CHECK(a.authority.trust_bundle_pem() == second);

  api.objects[kSecret]["metadata"]["annotations"] = {{"nodemesh.dev/rotate-root", "2026-11-22"}};
  look(a);
  REQUIRE(a.ca.state()->next);
  clock.advance(25h);
  look(a);
  CHECK(signs_with(a) != second);
  look(a);
  CHECK_FALSE(a.ca.state()->next);  // one request, one rotation
}

TEST_CASE_FIXTURE(Fixture,
                  "an authority whose root has expired while nobody ran signs again with a new one") {
  a.ca.begin();
  api.answer_all();
  std::string first = signs_with(a);
  clock.advance(24h * 2930);
  look(a);  // the next root is announced
  REQUIRE(a.ca.state()->next);
  Replica later(reactor, clock, api);
  clock.advance(24h * 800);
  later.ca.begin();
  api.answer_all();
  CHECK(later.ca.trouble().empty());
  CHECK(later.authority.ready());
  CHECK(signs_with(later) != first);
}

TEST_CASE_FIXTURE(Fixture, "the trust bundle is published by the leader only, and follows the authority") {
  look(a);
  TrustBundlePublisher publisher(reactor, api, a.authority, {.ns = "mesh"});
  publisher.refresh();
  api.answer_all();
  CHECK_FALSE(api.objects.contains(kBundle));
  publisher.begin();
  api.answer_all();
  CHECK(api.objects.at(kBundle)["data"]["root-cert.pem"] == a.authority.trust_bundle_pem());
  auto root = make(clock.wall(), {.name = "other"});
  a.authority.use(*Signer::load(plain(root), clock.wall()), root.pem());
  publisher.refresh();
  api.answer_all();
  CHECK(api.objects.at(kBundle)["data"]["root-cert.pem"] == root.pem());
  size_t writes = api.count("PUT");
  publisher.refresh();
  api.answer_all();
  CHECK(api.count("PUT") == writes);  // what is right is not written again
  // Somebody's edit is put right; a leader that ends writes no more.
  api.objects[kBundle]["data"]["root-cert.pem"] = "edited";
  publisher.end();
  publisher.refresh();
  api.answer_all();
  CHECK(api.objects.at(kBundle)["data"]["root-cert.pem"] == "edited");
  publisher.begin();
  api.answer();  // it reads, and loses the lease before the answer
  api.answer_all();
  CHECK(api.objects.at(kBundle)["data"]["root-cert.pem"] == root.pem());
}

TEST_CASE_FIXTURE(Fixture, "a trust bundle of somebody else's is never overwritten") {
  look(a);
  api.put(kBundle, {{"metadata", {{"name", "nodemesh-root-cert"}}}, {"data", {{"root-cert.pem", "theirs"}}}});
  TrustBundlePublisher publisher(reactor, api, a.authority, {.ns = "mesh"});
  publisher.begin();
  api.answer_all();
  CHECK(api.objects.at(kBundle)["data"]["root-cert.pem"] == "theirs");
  CHECK(publisher.trouble().find("somebody else's") != std::string::npos);
  api.objects.erase(kBundle);
  api.refuse_writes = 403;
  publisher.refresh();
  api.answer();
  publisher.end();  // the refusal comes when it is another leader's to mend
  api.answer_all();
  CHECK(publisher.trouble().empty());
}

TEST_CASE("the metrics page says when the trust bundle cannot be published") {
  CHECK(render_metrics({.bundle_good = true}).find("\nnodemesh_ca_trust_bundle_good 1\n") !=
        std::string::npos);
  CHECK(render_metrics({.bundle_good = false}).find("\nnodemesh_ca_trust_bundle_good 0\n") !=
        std::string::npos);
}

TEST_CASE("the metrics page of a controller without an authority says nothing of one") {
  CHECK(render_metrics({.authority = false}).find("nodemesh_ca_") == std::string::npos);
}

TEST_CASE_FIXTURE(Fixture, "the server's certificate has the Service's names and follows the authority") {
  ServerCertificate certificate(reactor, clock, a.authority, service_names("ctl", "mesh", "cluster.local"));
  certificate.refresh();
  CHECK(certificate.context() == nullptr);
  look(a);
  certificate.refresh();
  REQUIRE(certificate.context() != nullptr);
  auto names = [&](const char* host) {
    return X509_check_host(SSL_CTX_get0_certificate(certificate.context()), host, 0, 0, nullptr) == 1;
  };
  CHECK(names("ctl.mesh.svc"));
  CHECK(names("ctl.mesh.svc.cluster.local"));
  CHECK_FALSE(names("ctl.other.svc"));
  SSL_CTX* first = certificate.context();
  certificate.refresh();
  CHECK(certificate.context() == first);
  clock.advance(12h + 1min);
  certificate.refresh();
  CHECK(certificate.context() != nullptr);
  CHECK(certificate.not_after() > clock.wall() + 23h);
  auto root = make(clock.wall(), {.name = "other"});
  a.authority.use(*Signer::load(plain(root), clock.wall()), root.pem());
  certificate.refresh();
  CHECK(X509_NAME_cmp(X509_get_issuer_name(SSL_CTX_get0_certificate(certificate.context())),
                      X509_get_subject_name(root.certificate.get())) == 0);
  clock.advance(25h);
  CHECK(certificate.context() ==
        nullptr);  // nobody refreshed: better no connection than an expired certificate
}

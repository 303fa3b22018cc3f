#include <doctest/doctest.h>
#include <fcntl.h>
#include <openssl/pem.h>
#include <sys/mman.h>

#include <deque>

#include "base/log.h"
#include "identity/csr.h"
#include "identity/store.h"
#include "identity/vault.h"
#include "istio/v1/auth/ca.pb.h"
#include "support/certs.h"
#include "tls/verify.h"

using namespace nodemesh;
using namespace nodemesh::identity;
using test::spiffe;

namespace {

// An authority whose answers the test gives, by the real signing of a test root.
struct Scripted final : Authority {
  struct Asked {
    std::string uri;
    seconds lifetime;
    Done done;
  };
  std::deque<Asked> asked;
  size_t most_at_once = 0, total = 0;
  void request(const std::string& uri, seconds lifetime, Done done) override {
    asked.push_back({uri, lifetime, std::move(done)});
    most_at_once = std::max(most_at_once, asked.size());
    ++total;
  }
  void answer(Result<Issued> issued) {
    Asked first = std::move(asked.front());
    asked.pop_front();
    first.done(std::move(issued));
  }
};

struct Fixture {
  io::Reactor reactor;
  Clock clock;
  test::TestCa ca;
  Scripted authority;
  std::map<std::string, std::shared_ptr<const tls::Credential>> published;
  int trust_changes = 0, revoked = 0;
  CredentialStore store{reactor,
                        clock,
                        authority,
                        {.first_retry = milliseconds(10), .max_retry = milliseconds(40), .seed = 7},
                        [this](const std::string& uri, auto credential) {
                          if (!credential) ++revoked;
                          published[uri] = std::move(credential);
                        },
                        [this](auto) { ++trust_changes; }};

  Fixture() { log::set_level(log::Component::identity, log::Level::off); }
  ~Fixture() { log::set_level(log::Component::identity, log::Level::info); }

  Result<Issued> good(const std::string& uri, seconds lifetime = seconds(3600)) {
    return Issued{ca.credential({.uris = {uri}, .not_after = WallClock::now() + lifetime}), ca.root_pem()};
  }
  template <class Condition>
  bool until(Condition condition) {
    auto deadline = Monotonic::now() + seconds(20);
    while (!condition() && Monotonic::now() < deadline) reactor.run_once(milliseconds(50));
    return condition();
  }
};

const std::string kWeb = spiffe("default", "web"), kDb = spiffe("default", "db");

}  // namespace

TEST_CASE("a request carries the identity as its one SAN and its key is accepted") {
  auto made = make_csr(kWeb);
  REQUIRE(made);
  CHECK(key_of_csr(made->csr_pem));
  CHECK(made->key_pem.find("PRIVATE KEY") != std::string::npos);
}

TEST_CASE("requests that are broken, forged or weak are refused with the reason") {
  auto made = make_csr(kWeb);
  REQUIRE(made);
  auto why = [](std::string_view csr) {
    auto key = key_of_csr(csr);
    return key ? std::string("accepted") : key.error().message;
  };
  CHECK(why("").find("not a PEM certificate request") != std::string::npos);
  CHECK(why(std::string(40'000, 'A')).find("32 KiB") != std::string::npos);
  // Another request's body under this one's signature.
  BIO* bio = BIO_new_mem_buf(made->csr_pem.data(), static_cast<int>(made->csr_pem.size()));
  X509_REQ* request = PEM_read_bio_X509_REQ(bio, nullptr, nullptr, nullptr);
  auto other = tls::make_p256_key();
  X509_REQ_set_pubkey(request, other->get());
  BIO* out = BIO_new(BIO_s_mem());
  PEM_write_bio_X509_REQ(out, request);
  char* data = nullptr;
  long size = BIO_get_mem_data(out, &data);
  CHECK(why({data, static_cast<size_t>(size)}).find("signature does not verify") != std::string::npos);
  X509_REQ_free(request);
  BIO_free(bio);
  BIO_free(out);
  // RSA 1024 and P-384.
  for (auto [key, text] :
       {std::pair{EVP_RSA_gen(1024), "1024 bits"}, std::pair{EVP_EC_gen("P-384"), "384 bits"}}) {
    X509_REQ* weak = X509_REQ_new();
    X509_REQ_set_pubkey(weak, key);
    X509_REQ_sign(weak, key, EVP_sha256());
    BIO* pem = BIO_new(BIO_s_mem());
    PEM_write_bio_X509_REQ(pem, weak);
    size = BIO_get_mem_data(pem, &data);
    CHECK(why({data, static_cast<size_t>(size)}).find(text) != std::string::npos);
    BIO_free(pem);
    X509_REQ_free(weak);
    EVP_PKEY_free(key);
  }
}

TEST_CASE("an authority's answer is checked before it becomes a credential") {
  test::TestCa ca;
  auto issued = ca.issue({.uris = {kWeb}});
  auto respond = [&](std::vector<std::string> chain, const std::string& uri = kWeb) {
    istio::v1::auth::IstioCertificateResponse response;
    for (auto& pem : chain) response.add_cert_chain(pem);
    auto read = read_response(response.SerializeAsString(), issued.key_pem, uri);
    return read ? std::string() : read.error().message;
  };
  CHECK(respond({issued.chain_pem, ca.root_pem()}).empty());
  CHECK(respond({issued.chain_pem}).find("1 elements") != std::string::npos);
  CHECK(respond({ca.root_pem(), issued.chain_pem}).find("leaf must come first") != std::string::npos);
  CHECK(respond({issued.chain_pem, ca.root_pem()}, kDb).find("asked for") != std::string::npos);
  CHECK_FALSE(read_response("\xff\xff\xff", issued.key_pem, kWeb));
}

TEST_CASE_FIXTURE(Fixture, "each wanted identity is requested once and published with the roots before it") {
  store.set_wanted({kWeb, kDb});
  REQUIRE(authority.asked.size() == 2);
  CHECK_FALSE(store.complete());
  authority.answer(good(authority.asked.front().uri));
  CHECK(trust_changes == 1);
  authority.answer(good(authority.asked.front().uri));
  CHECK(trust_changes == 1);
  CHECK(store.complete());
  CHECK(published[kWeb]);
  CHECK(store.find(kDb));
  store.set_wanted({kWeb, kDb});
  CHECK(authority.total == 2);
  store.set_wanted({kWeb});
  CHECK_FALSE(published[kDb]);
  CHECK_FALSE(store.find(kDb));
}

TEST_CASE_FIXTURE(Fixture, "at most eight requests are under way") {
  std::set<std::string> many;
  for (int i = 0; i < 30; ++i) many.insert(spiffe("default", "w" + std::to_string(i)));
  store.set_wanted(many);
  CHECK(authority.asked.size() == 8);
  while (!authority.asked.empty()) authority.answer(good(authority.asked.front().uri));
  CHECK(authority.most_at_once == 8);
  CHECK(store.complete());
}

TEST_CASE_FIXTURE(Fixture, "a refusal is retried with growing pauses and shown in the status") {
  store.set_wanted({kWeb});
  for (int i = 0; i < 4; ++i) {
    REQUIRE(until([&] { return !authority.asked.empty(); }));
    authority.answer(fail(Reason::NO_IDENTITY, "no such pod"));
    CHECK(store.status()[0].failures == static_cast<uint32_t>(i + 1));
    CHECK(store.status()[0].last_error == "no such pod");
  }
  REQUIRE(until([&] { return !authority.asked.empty(); }));
  authority.answer(good(kWeb));
  CHECK(store.status()[0].failures == 0);
  CHECK(store.status()[0].last_error.empty());
  CHECK(store.status()[0].serial == published[kWeb]->serial());
}

TEST_CASE_FIXTURE(Fixture, "a certificate is renewed near half its life and the old one stays until then") {
  store.set_wanted({kWeb});
  authority.answer(good(kWeb, seconds(3)));
  auto first = published[kWeb];
  auto start = Monotonic::now();
  REQUIRE(until([&] { return !authority.asked.empty(); }));
  auto waited = Monotonic::now() - start;
  CHECK(waited > milliseconds(700));
  CHECK(published[kWeb] == first);
  authority.answer(good(kWeb));
  CHECK(published[kWeb] != first);
  CHECK(revoked == 0);
}

TEST_CASE_FIXTURE(Fixture, "a certificate that expires without a successor is withdrawn, and comes back") {
  store.set_wanted({kWeb});
  authority.answer(good(kWeb, seconds(2)));
  REQUIRE(until([&] {
    while (!authority.asked.empty()) authority.answer(fail("the authority is away"));
    return revoked == 1;
  }));
  CHECK_FALSE(store.find(kWeb));
  CHECK_FALSE(store.complete());
  CHECK(store.lacking() == std::vector<std::string>{"the certificate of " + std::string(kWeb) +
                                                    " has expired: the authority is away"});
  CHECK(store.wants(kWeb));
  REQUIRE(until([&] { return !authority.asked.empty(); }));
  authority.answer(good(kWeb));
  CHECK(store.complete());
  CHECK(store.lacking().empty());
  store.set_wanted({kWeb, "spiffe://cluster.local/ns/shop/sa/api"});
  CHECK(store.lacking() ==
        std::vector<std::string>{"no certificate yet for spiffe://cluster.local/ns/shop/sa/api"});
}

TEST_CASE_FIXTURE(Fixture, "an answer for an identity that was dropped meanwhile is thrown away") {
  store.set_wanted({kWeb});
  store.set_wanted({});
  store.set_wanted({kWeb});
  authority.answer(good(kWeb));
  CHECK_FALSE(store.find(kWeb));
  REQUIRE(authority.asked.size() == 1);
  authority.answer(good(kWeb));
  CHECK(store.find(kWeb));
}

TEST_CASE_FIXTURE(Fixture, "an answer that is not valid now or brings no roots is a failure") {
  store.set_wanted({kWeb});
  authority.answer(good(kWeb, seconds(-10)));
  CHECK(store.status()[0].last_error.find("compare the clocks") != std::string::npos);
  REQUIRE(until([&] { return !authority.asked.empty(); }));
  authority.answer(Issued{ca.credential({.uris = {kWeb}}), "garbage"});
  CHECK(store.status()[0].last_error.find("trust bundle") != std::string::npos);
  CHECK_FALSE(store.find(kWeb));
}

TEST_CASE_FIXTURE(Fixture, "what an earlier process left serves without asking") {
  VaultContents left{.credentials = {ca.credential({.uris = {kWeb}})}, .trust = ca.trust()};
  store.adopt(left);
  store.set_wanted({kWeb});
  CHECK(authority.asked.empty());
  CHECK(published[kWeb]);
  CHECK(trust_changes == 1);
  CHECK(store.contents().credentials.size() == 1);
}

TEST_CASE_FIXTURE(Fixture,
                  "what an earlier process left serves at once although it is wanted already and asked for") {
  store.set_wanted({kWeb});
  VaultContents left{.credentials = {ca.credential({.uris = {kWeb}})}, .trust = ca.trust()};
  store.adopt(left);
  CHECK(store.find(kWeb) == left.credentials[0]);
  CHECK(published[kWeb]);
  CHECK(store.complete());
}

TEST_CASE_FIXTURE(Fixture, "what the authority gave before an earlier process's keys came stays") {
  store.set_wanted({kWeb, kDb});
  authority.answer(good(authority.asked.front().uri));
  auto given = store.contents();
  REQUIRE(given.credentials.size() == 1);
  test::TestCa older;
  VaultContents left{.credentials = {older.credential({.uris = {kWeb}}), older.credential({.uris = {kDb}})},
                     .trust = older.trust()};
  store.adopt(left);
  CHECK(store.trust() == given.trust);
  CHECK(store.find(given.credentials[0]->uri()) == given.credentials[0]);
  CHECK(store.complete());
}

TEST_CASE("the vault gives back what was put in") {
  test::TestCa root;
  test::TestCa ca(root, "intermediate");
  VaultContents in{.credentials = {ca.credential({.uris = {kWeb}}),
                                   ca.credential({.uris = {kDb}, .key = test::KeyKind::rsa2048})},
                   .trust = ca.trust(),
                   .ticket_keys = *tls::TicketKeys::random(WallClock::now())};
  auto fd = write_vault(in);
  REQUIRE(fd);
  auto out = read_vault(fd->get());
  REQUIRE(out);
  REQUIRE(out->credentials.size() == 2);
  CHECK(out->credentials[0]->uri() == kWeb);
  CHECK(out->credentials[0]->serial() == in.credentials[0]->serial());
  CHECK(out->credentials[0]->key_pem() == in.credentials[0]->key_pem());
  CHECK(out->credentials[0]->chain_pem() == in.credentials[0]->chain_pem());
  CHECK(out->trust->generation() == in.trust->generation());
  CHECK(*out->ticket_keys == *in.ticket_keys);
  CHECK(read_vault(write_vault({})->get()));
}

TEST_CASE("a vault cannot be changed after it was written, and an unsealed one is refused") {
  auto fd = write_vault({});
  REQUIRE(fd);
  CHECK(::pwrite(fd->get(), "x", 1, 0) < 0);
  CHECK(::ftruncate(fd->get(), 0) < 0);
  Fd open(::memfd_create("t", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  std::string bytes = encode_vault({});
  REQUIRE(::write(open.get(), bytes.data(), bytes.size()) == static_cast<ssize_t>(bytes.size()));
  auto read = read_vault(open.get());
  REQUIRE_FALSE(read);
  CHECK(read.error().message.find("not sealed") != std::string::npos);
  Fd file(::open("/proc/self/exe", O_RDONLY));
  CHECK_FALSE(read_vault(file.get()));
}

TEST_CASE("a vault with any byte changed or cut is refused") {
  test::TestCa ca;
  std::string good = encode_vault(
      {.credentials = {ca.credential({.uris = {kWeb}})}, .trust = ca.trust(), .ticket_keys = nullptr});
  REQUIRE(decode_vault(good));
  for (size_t i = 0; i < good.size(); i += 7) {
    std::string bad = good;
    bad[i] = static_cast<char>(bad[i] ^ 0x20);
    CHECK_FALSE(decode_vault(bad));
    CHECK_FALSE(decode_vault(good.substr(0, i)));
  }
}

TEST_CASE("ticket keys of another version's layout are left out of a vault alone") {
  test::TestCa ca;
  std::string body = encode_vault({.credentials = {ca.credential({.uris = {kWeb}})}, .trust = ca.trust()});
  body.resize(body.size() - 32);
  body += std::string("\x02\xa0\0\0\0", 5) + std::string(160, 'k');  // 160 bytes of ticket keys
  auto digest = tls::sha256(body);
  body.append(reinterpret_cast<const char*>(digest.data()), digest.size());
  std::vector<std::string> dropped;
  auto read = decode_vault(body, &dropped);
  REQUIRE(read);
  CHECK(read->credentials.size() == 1);
  CHECK(read->trust != nullptr);
  CHECK(read->ticket_keys == nullptr);
  REQUIRE(dropped.size() == 1);
  CHECK(dropped[0].find("ticket keys") != std::string::npos);
}

TEST_CASE("a bad credential in a sound vault is dropped alone") {
  test::TestCa ca;
  auto a = ca.issue({.uris = {kWeb}}), b = ca.issue({.uris = {kDb}});
  auto put = [](std::string& out, char kind, std::string_view bytes) {
    auto size = static_cast<uint32_t>(bytes.size());
    out += kind;
    out.append(reinterpret_cast<const char*>(&size), 4).append(bytes);
  };
  std::string bytes = "nodemesh-vault-1";
  put(bytes, 3, a.key_pem);
  put(bytes, 4, b.chain_pem);  // not its key
  put(bytes, 3, b.key_pem);
  put(bytes, 4, b.chain_pem);
  auto seal = [](std::string body) {
    auto digest = tls::sha256(body);
    return body.append(reinterpret_cast<const char*>(digest.data()), digest.size());
  };
  std::vector<std::string> dropped;
  auto out = decode_vault(seal(bytes), &dropped);
  REQUIRE(out);
  CHECK(out->credentials.size() == 1);
  REQUIRE(dropped.size() == 1);
  CHECK(dropped[0].find("not for this private key") != std::string::npos);
  put(bytes, 3, a.key_pem);
  CHECK_FALSE(decode_vault(seal(bytes)));  // a key without a chain
  CHECK_FALSE(decode_vault(seal("nodemesh-vault-1\x09\x01\x01\x01\x7f")));
}

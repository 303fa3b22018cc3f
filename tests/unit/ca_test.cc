#include <doctest/doctest.h>
#include <openssl/x509v3.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "controller/ca.h"
#include "controller/folder_authorizer.h"
#include "controller/issuer.h"
#include "controller/state_root.h"
#include "controller/unix_listener.h"
#include "identity/csr.h"
#include "kube/objects.h"
#include "tls/verify.h"
#include "translate/translate.h"

using namespace nodemesh;
using namespace nodemesh::controller;

namespace {

struct TempDir {
  std::string path;
  TempDir() {
    char name[] = "/tmp/nodemesh-ca-XXXXXX";
    path = ::mkdtemp(name);
  }
  ~TempDir() { std::filesystem::remove_all(path); }
};

struct At final : Clock {
  WallClock::time_point time = WallClock::now();
  WallClock::time_point wall() const override { return time; }
};

struct Fixture {
  TempDir dir;
  At clock;
  StateRoot::Settings settings{.state_dir = dir.path + "/state"};
  seconds max_lifetime{24 * 3600};
  std::string open_error() {
    auto root = StateRoot::open(settings, clock.wall());
    return root ? "" : root.error().message;
  }
  // The authority of the state directory's root.
  CertificateAuthority authority() {
    auto root = StateRoot::open(settings, clock.wall());
    REQUIRE_MESSAGE(root, (root ? "" : root.error().message));
    CertificateAuthority out(clock, {.max_lifetime = max_lifetime});
    out.use(root->signer, root->signer->roots_pem());
    return out;
  }
};

mode_t mode(const std::string& path) {
  struct stat info{};
  ::stat(path.c_str(), &info);
  return info.st_mode & 07777;
}

const tls::SpiffeId kWeb{"cluster.local", "default", "web"};

struct Everyone final : Authorizer {
  void authorize(const Caller&, const std::optional<tls::SpiffeId>& asked, Done done) override {
    if (!asked) return done(refused(Refusal::no_token, "who are you"));
    if (asked->service_account == "nobody") return done(refused(Refusal::no_pod_on_node, "not that one"));
    done(*asked);
  }
};

}  // namespace

TEST_CASE_FIXTURE(Fixture, "the root is made once, kept private, and the same after a restart") {
  std::string first;
  {
    auto root = StateRoot::open(settings, clock.wall());
    REQUIRE(root);
    first = root->signer->roots_pem();
    CHECK(root->signer->not_after() > clock.time + std::chrono::hours(24 * 3649));
    CHECK(open_error().find("in use by another") != std::string::npos);
  }
  CHECK(mode(settings.state_dir) == 0700);
  CHECK(mode(settings.state_dir + "/ca.pem") == 0600);
  CHECK(authority().trust_bundle_pem() == first);
}

TEST_CASE_FIXTURE(Fixture, "a state directory or key that others can read is refused with the fix") {
  REQUIRE(open_error().empty());
  ::chmod(settings.state_dir.c_str(), 0750);
  CHECK(open_error().find("chmod 700") != std::string::npos);
  ::chmod(settings.state_dir.c_str(), 0700);
  ::chmod((settings.state_dir + "/ca.pem").c_str(), 0640);
  CHECK(open_error().find("chmod 600") != std::string::npos);
  ::chmod((settings.state_dir + "/ca.pem").c_str(), 0600);
  CHECK(open_error().empty());
}

TEST_CASE_FIXTURE(Fixture, "a damaged, foreign or expired root is refused, never replaced") {
  REQUIRE(open_error().empty());
  std::string file = settings.state_dir + "/ca.pem";
  std::ifstream in(file);
  std::string good((std::istreambuf_iterator<char>(in)), {});
  auto with = [&](const std::string& bytes) {
    std::ofstream(file, std::ios::trunc) << bytes;
    return open_error();
  };
  CHECK(with("").find("private key") != std::string::npos);
  CHECK(with(good.substr(0, good.find("-----BEGIN CERT"))).find("0 certificates") != std::string::npos);
  auto other = tls::make_p256_key();
  CHECK(with(tls::to_pem(other->get()) + good.substr(good.find("-----BEGIN CERT"))).find("not for the key") !=
        std::string::npos);
  CHECK(with(good).empty());
  clock.time += std::chrono::hours(24 * 3651);
  CHECK(open_error().find("expired") != std::string::npos);
}

TEST_CASE_FIXTURE(Fixture, "a state directory whose parent is missing is an error that names it") {
  settings.state_dir = dir.path + "/no/such";
  CHECK(open_error().find(settings.state_dir) != std::string::npos);
  settings.state_dir = dir.path + "/s";
  settings.trust_domain = "Bad_Domain!";
  CHECK(open_error().find("--trust-domain") != std::string::npos);
}

TEST_CASE_FIXTURE(Fixture, "a certificate has our SAN, the usages of both roles and a clamped life") {
  max_lifetime = seconds(3600);
  auto ca = authority();
  auto key = tls::make_p256_key();
  auto issued = ca.sign(key->get(), kWeb, seconds(60));
  REQUIRE(issued);
  REQUIRE(issued->chain.size() == 2);
  CHECK(issued->chain[1] == ca.trust_bundle_pem());
  CHECK(issued->not_after == clock.time + seconds(60));
  CHECK(ca.sign(key->get(), kWeb, seconds(0))->not_after == clock.time + seconds(3600));
  CHECK(ca.sign(key->get(), kWeb, std::chrono::hours(999))->not_after == clock.time + seconds(3600));
  CHECK(ca.sign(key->get(), kWeb, seconds(0))->serial != issued->serial);

  auto leaf = std::move(tls::parse_certificates(issued->chain[0])->front());
  CHECK(*tls::to_time(X509_get0_notBefore(leaf.get())) <= clock.time - seconds(119));
  CHECK(X509_NAME_entry_count(X509_get_subject_name(leaf.get())) == 0);
  CHECK(X509_get_key_usage(leaf.get()) == (KU_DIGITAL_SIGNATURE | KU_KEY_ENCIPHERMENT));
  CHECK(X509_get_extended_key_usage(leaf.get()) == (XKU_SSL_SERVER | XKU_SSL_CLIENT));
  CHECK(X509_check_ca(leaf.get()) == 0);
  tls::Verifier verifier(clock, {"cluster.local"});
  verifier.set_trust(*tls::TrustBundle::from_pem(issued->chain[1]));
  CHECK(verifier.verify(leaf.get(), nullptr, tls::PeerRole::client));
  CHECK(verifier.verify(leaf.get(), nullptr, tls::PeerRole::server));
}

TEST_CASE_FIXTURE(Fixture, "no certificate outlives the root") {
  settings.root_lifetime = seconds(3600);
  auto ca = authority();
  auto key = tls::make_p256_key();
  CHECK(ca.sign(key->get(), kWeb, std::chrono::hours(24))->not_after == ca.signer()->not_after());
  clock.time += seconds(3700);
  CHECK_FALSE(ca.sign(key->get(), kWeb, seconds(0)));
}

TEST_CASE_FIXTURE(Fixture,
                  "the issuer signs for the identity that was authorised, whatever the request says") {
  auto ca = authority();
  Everyone everyone;
  Issuer issuer(clock, ca, everyone);
  auto csr = identity::make_csr("spiffe://cluster.local/ns/kube-system/sa/admin");
  auto issue = [&](const std::string& id, const std::string& text, int64_t lifetime = 0) {
    std::expected<std::vector<std::string>, Refusal> out = std::unexpected(Refusal::count);
    issuer.issue({}, {.csr = text, .lifetime_seconds = lifetime, .impersonated_identity = id},
                 [&](auto chain) { out = std::move(chain); });
    return out;
  };
  auto chain = issue(kWeb.uri(), csr->csr_pem);
  REQUIRE(chain);
  auto credential = tls::Credential::from_pem(csr->key_pem, (*chain)[0]);
  REQUIRE(credential);
  CHECK((*credential)->uri() == kWeb.uri());

  using enum Refusal;
  CHECK(issue("", csr->csr_pem).error() == no_token);
  CHECK(issue("spiffe://other/ns/default/sa/web", csr->csr_pem).error() == foreign_trust_domain);
  CHECK(issue("spiffe://cluster.local/ns/default/sa/web,URI:spiffe://x", csr->csr_pem).error() ==
        identity_invalid);
  CHECK(issue("spiffe://cluster.local/ns/default/sa/nobody", csr->csr_pem).error() == no_pod_on_node);
  CHECK(issue(kWeb.uri(), "garbage").error() == request_invalid);
  CHECK(issue(kWeb.uri(), csr->csr_pem, -1).error() == request_invalid);
  CHECK(issue(kWeb.uri(), csr->csr_pem, INT64_MAX));
  CHECK(issuer.counters().issued == 2);
  CHECK(issuer.counters().refused[static_cast<size_t>(request_invalid)] == 2);
}

TEST_CASE("the folder's authoriser knows service accounts by their unfinished pods") {
  kube::Store store(translate::kinds());
  store.set_file("pods.yaml", kube::parse_manifest(R"(
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: default, annotations: {nodemesh.dev/netns: /run/netns/a}}
spec: {nodeName: a, serviceAccountName: web}
status: {podIP: 10.0.0.1}
---
apiVersion: v1
kind: Pod
metadata: {name: job-1, namespace: default, annotations: {nodemesh.dev/netns: /run/netns/b}}
spec: {nodeName: a, serviceAccountName: job}
status: {podIP: 10.0.0.2, phase: Succeeded}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: idle, namespace: default}
)",
                                                   "pods.yaml"));
  FolderAuthorizer authorizer;
  authorizer.update(store);
  auto allowed = [&](const std::string& ns, const std::string& name) {
    bool out = false;
    authorizer.authorize({}, tls::SpiffeId{"cluster.local", ns, name},
                         [&](const auto& verdict) { out = verdict.has_value(); });
    return out;
  };
  CHECK(allowed("default", "web"));
  CHECK_FALSE(allowed("default", "job"));
  CHECK_FALSE(allowed("default", "idle"));
  CHECK_FALSE(allowed("other", "web"));
}

TEST_CASE("a socket path in use is refused, a dead one is replaced") {
  TempDir dir;
  std::string path = dir.path + "/ca.sock";
  {
    auto first = listen_unix(path, static_cast<gid_t>(-1));
    REQUIRE(first);
    CHECK(mode(path) == 0660);
    auto second = listen_unix(path, static_cast<gid_t>(-1));
    REQUIRE_FALSE(second);
    CHECK(second.error().message.find("in use") != std::string::npos);
  }
  CHECK(listen_unix(path, static_cast<gid_t>(-1)));
  std::ofstream(dir.path + "/file") << "x";
  auto file = listen_unix(dir.path + "/file", static_cast<gid_t>(-1));
  REQUIRE_FALSE(file);
  CHECK(file.error().message.find("not a socket") != std::string::npos);
  CHECK_FALSE(listen_unix(std::string(200, 'x'), static_cast<gid_t>(-1)));
}

// Not on the sanitised build: without descriptors UBSan cannot look at memory, and takes every object for
// broken.
#if !__has_feature(undefined_behavior_sanitizer)
TEST_CASE("who comes to the Unix socket while there are no descriptors is served when there are") {
  TempDir dir;
  io::Reactor reactor;
  int served = 0;
  auto front = UnixFront::start(reactor, {.path = dir.path + "/ca.sock", .allowed_uids = {::getuid()}},
                                [&](Fd, const std::string&) { ++served; });
  REQUIRE(front);
  Fd client(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un to{.sun_family = AF_UNIX, .sun_path = {}};
  (dir.path + "/ca.sock").copy(to.sun_path, sizeof to.sun_path - 1);
  REQUIRE(::connect(client.get(), reinterpret_cast<sockaddr*>(&to), sizeof to) == 0);
  rlimit before{};
  ::getrlimit(RLIMIT_NOFILE, &before);
  rlimit none{.rlim_cur = 0, .rlim_max = before.rlim_max};
  ::setrlimit(RLIMIT_NOFILE, &none);
  reactor.run_once(milliseconds(0));
  ::setrlimit(RLIMIT_NOFILE, &before);
  CHECK(served == 0);
  auto deadline = Monotonic::now() + seconds(10);
  while (served == 0 && Monotonic::now() < deadline) reactor.run_once(milliseconds(20));
  CHECK(served == 1);
}
#endif

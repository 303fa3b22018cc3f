// Where the API server is, from a pod's service account or a kubeconfig, and tokens that rotate.
#include "kube_fixtures.h"

using namespace nodemesh;
using namespace nodemesh::kube;
using nodemesh::test::TempDir;

namespace {

AccessPlaces pod(const TempDir& dir, const std::string& host) {
  return {.variable = [host](const std::string& name) -> std::optional<std::string> {
            if (name == "KUBERNETES_SERVICE_HOST") return host;
            if (name == "KUBERNETES_SERVICE_PORT") return "6443";
            return std::nullopt;
          },
          .service_account = dir.path};
}

std::string config(const std::string& cluster, const std::string& user) {
  return "apiVersion: v1\nkind: Config\ncurrent-context: c\n"
         "contexts: [{name: c, context: {cluster: k, user: u, namespace: shop}}, {name: gone, context: "
         "{cluster: x}}]\n"
         "clusters: [{name: k, cluster: {" +
         cluster + "}}]\nusers: [{name: u, user: {" + user + "}}]\n";
}

std::string failure(const std::string& text, const KubeconfigChoice& choice = {}) {
  auto access = parse_kubeconfig(text, "/etc/kc", choice);
  return access ? "none" : access.error().message;
}

}  // namespace

TEST_CASE("a pod finds its API server by its environment, IPv6 too") {
  TempDir dir;
  dir.write("token", "abc\n");
  dir.write("ca.crt", "pem");
  dir.write("namespace", "mesh\n");
  auto access = in_cluster_access(pod(dir, "10.96.0.1"));
  REQUIRE(access);
  CHECK(access->url() == "https://10.96.0.1:6443");
  CHECK(access->ns == "mesh");
  CHECK(access->server_name == "10.96.0.1");
  CHECK(access->token.file == dir.path + "/token");
  access = in_cluster_access(pod(dir, "fd00::1"));
  REQUIRE(access);
  CHECK(access->url() == "https://[fd00::1]:6443");
}

TEST_CASE("outside a pod, or without a token, a sentence says what to do") {
  TempDir dir;
  AccessPlaces nowhere{.variable = [](const std::string&) { return std::nullopt; }};
  CHECK(in_cluster_access(nowhere).error().message.find("name a kubeconfig") != std::string::npos);
  dir.write("ca.crt", "pem");
  CHECK(in_cluster_access(pod(dir, "10.96.0.1")).error().message.find("automountServiceAccountToken") !=
        std::string::npos);
}

TEST_CASE("a kubeconfig's context leads to server, roots and credentials; files are beside it") {
  auto access = parse_kubeconfig(config("server: 'https://API.example:6443/k8s/x/', "
                                        "certificate-authority-data: Y2E=, tls-server-name: kube",
                                        "client-certificate: me.crt, client-key: /abs/me.key, token: t"),
                                 "/etc/kc", {});
  REQUIRE(access);
  CHECK(access->url() == "https://api.example:6443/k8s/x");
  CHECK(access->server_name == "kube");
  CHECK(access->roots.text == "ca");
  CHECK(access->certificate.file == "/etc/me.crt");
  CHECK(access->key.file == "/abs/me.key");
  CHECK(access->token.text == "t");
  CHECK(access->ns == "shop");
  access = parse_kubeconfig(config("server: 'https://[::1]'", "tokenFile: tok"), "/etc/kc", {});
  REQUIRE(access);
  CHECK(access->host == "::1");
  CHECK(access->port == 443);
  CHECK(access->token.file == "/etc/tok");
}

TEST_CASE("what a kubeconfig may not say is refused with a sentence that names the place") {
  CHECK(failure(config("server: 'http://a'", "")).find("never sent unencrypted") != std::string::npos);
  CHECK(failure(config("server: 'https://a:x'", "")).find("port must be") != std::string::npos);
  CHECK(failure(config("server: 'https://u@a'", "")).find("cluster \"k\"") != std::string::npos);
  CHECK(failure(config("server: 'https://a', proxy-url: 'http://p'", "")).find("proxy-url") !=
        std::string::npos);
  CHECK(failure(config("server: 'https://a'", "exec: {command: aws}")).find("(exec)") != std::string::npos);
  CHECK(failure(config("server: 'https://a'", "auth-provider: {name: x}")).find("(auth-provider)") !=
        std::string::npos);
  CHECK(failure(config("server: 'https://a'", "username: x")).find("username") != std::string::npos);
  CHECK(failure(config("server: 'https://a'", "client-certificate: x")).find("only one of") !=
        std::string::npos);
  CHECK(failure(config("server: 'https://a', certificate-authority-data: '?'", "")).find("base64") !=
        std::string::npos);
  CHECK(failure(config("server: [1]", "")).find("server") != std::string::npos);
  CHECK(failure(config("server: 'https://a'", ""), {.context = "no"}).find("no context \"no\"") !=
        std::string::npos);
  CHECK(failure(config("server: 'https://a'", ""), {.context = "gone"}).find("no cluster \"x\"") !=
        std::string::npos);
  CHECK(failure("- a\n").find("mapping") != std::string::npos);
  CHECK(failure("a: [\n").find("kubeconfig") != std::string::npos);
}

TEST_CASE("an API server whose certificate is not to be verified is refused") {
  auto text = config("server: 'https://a', insecure-skip-tls-verify: true", "");
  CHECK(failure(text).find("anybody on the path") != std::string::npos);
}

TEST_CASE("a token file is read anew when it changes, when a minute has passed, and at expire()") {
  TempDir dir;
  ManualClock clock;
  auto path = dir.write("token", "one");
  TokenCache cache({.file = path}, clock);
  CHECK(*cache.token() == "one");
  auto keep_mtime = [&](const std::string& text) {
    struct stat before{};
    ::stat(path.c_str(), &before);
    dir.write("token", text);
    timespec times[] = {before.st_atim, before.st_mtim};
    ::utimensat(AT_FDCWD, path.c_str(), times, 0);
  };
  keep_mtime("two");
  CHECK(*cache.token() == "one");
  clock.advance(seconds(61));
  CHECK(*cache.token() == "two");
  keep_mtime("three");
  CHECK(cache.expire());
  CHECK(*cache.token() == "three");
  dir.write("token", "four");
  timespec later[] = {{.tv_sec = 2'000'000'000}, {.tv_sec = 2'000'000'000}};
  ::utimensat(AT_FDCWD, path.c_str(), later, 0);
  CHECK(*cache.token() == "four");
}

TEST_CASE("a token file that is gone or holds rubbish leaves the last token in use") {
  TempDir dir;
  ManualClock clock;
  TokenCache cache({.file = dir.write("token", "good")}, clock);
  CHECK(*cache.token() == "good");
  dir.write("token", "a\r\nX-Header: b");
  cache.expire();
  CHECK(*cache.token() == "good");
  ::unlink((dir.path + "/token").c_str());
  cache.expire();
  CHECK(*cache.token() == "good");
  CHECK_FALSE(TokenCache({.file = dir.path + "/none"}, clock).token());
}

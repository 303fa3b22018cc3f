// The real controller as a process, our agent's client against it.
#include <doctest/doctest.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <optional>

#include "http/grpc_client.h"
#include "identity/ca_client.h"
#include "identity/store.h"
#include "io/reactor.h"
#include "support/certs.h"

using namespace nodemesh;
using namespace nodemesh::identity;

namespace {

std::string pod(const std::string& name, const std::string& service_account, const std::string& address) {
  return "apiVersion: v1\nkind: Pod\nmetadata: {name: " + name +
         ", namespace: default, annotations: {nodemesh.dev/netns: /run/netns/" + name +
         "}}\nspec: {nodeName: a, serviceAccountName: " + service_account + "}\nstatus: {podIP: " + address +
         "}\n";
}

std::string controller_binary() {
  if (const char* path = std::getenv("NODEMESH_CONTROLLER")) return path;
  return std::filesystem::canonical("/proc/self/exe").parent_path().parent_path() /
         "controller/nodemesh-controller";
}

struct Controller {
  std::string dir, socket;
  pid_t pid = -1;
  io::Reactor reactor;

  explicit Controller(std::vector<std::string> extra = {}) {
    char name[] = "/tmp/nodemesh-ca-XXXXXX";
    dir = ::mkdtemp(name);
    socket = dir + "/ca.sock";
    ::mkdir((dir + "/config").c_str(), 0755);
    std::ofstream(dir + "/config/pods.yaml") << pod("web-1", "web", "10.0.0.1");
    start(std::move(extra));
  }
  ~Controller() {
    stop();
    std::filesystem::remove_all(dir);
  }

  void start(std::vector<std::string> extra = {}) {
    std::vector<std::string> args = {controller_binary(), "--config",       dir + "/config",
                                     "--listen",          "unix:" + socket, "--state-dir",
                                     dir + "/state",      "--log-level",    "error"};
    args.insert(args.end(), extra.begin(), extra.end());
    std::vector<char*> argv;
    for (auto& arg : args) argv.push_back(arg.data());
    argv.push_back(nullptr);
    pid = ::fork();
    if (pid == 0) {
      ::execv(argv[0], argv.data());
      ::_exit(127);
    }
    REQUIRE(until([&] { return std::filesystem::exists(socket); }));
  }
  int stop() {
    if (pid < 0) return 0;
    ::kill(pid, SIGTERM);
    int status = 0;
    ::waitpid(pid, &status, 0);
    pid = -1;
    return status;
  }
  template <class Condition>
  bool until(Condition condition) {
    auto deadline = Monotonic::now() + seconds(20);
    while (!condition() && Monotonic::now() < deadline) reactor.run_once(milliseconds(20));
    return condition();
  }
  http::GrpcClient::Target target() const { return {.unix_path = socket}; }
  Result<Issued> ask(CaClient& client, const std::string& uri, seconds lifetime = seconds(60)) {
    std::optional<Result<Issued>> answer;
    client.request(uri, lifetime, [&](Result<Issued> issued) { answer = std::move(issued); });
    CHECK_FALSE(answer);  // never within request()
    REQUIRE(until([&] { return answer.has_value(); }));
    return std::move(*answer);
  }
};

http::GrpcReply call(Controller& controller, http::GrpcClient& client, http::GrpcClient::Call what) {
  std::optional<http::GrpcReply> reply;
  client.call(std::move(what), [&](http::GrpcReply got) { reply = std::move(got); });
  REQUIRE(controller.until([&] { return reply.has_value(); }));
  return std::move(*reply);
}

}  // namespace

TEST_CASE("a credential travels from request to authority and back over gRPC") {
  Controller controller;
  CaClient client(controller.reactor, {.target = controller.target()});
  auto issued = controller.ask(client, test::spiffe("default", "web"), seconds(90));
  REQUIRE_MESSAGE(issued, (issued ? "" : issued.error().message));
  CHECK(issued->credential->uri() == test::spiffe("default", "web"));
  auto life = issued->credential->not_after() - WallClock::now();
  CHECK(life > seconds(60));
  CHECK(life <= seconds(90));
  Clock clock;
  tls::Verifier checking(clock, {"cluster.local"});
  checking.set_trust(*tls::TrustBundle::from_pem(issued->roots_pem));
  CHECK(checking.verify(issued->credential->leaf(), issued->credential->intermediates(),
                        tls::PeerRole::server));
}

TEST_CASE(
    "an identity without a pod is refused in words that tell nothing, and granted once the pod is there") {
  Controller controller;
  CaClient client(controller.reactor, {.target = controller.target()});
  auto refused = controller.ask(client, test::spiffe("default", "late"));
  REQUIRE_FALSE(refused);
  CHECK(refused.error().message.find("code 16, request authenticate failure") != std::string::npos);
  std::ofstream(controller.dir + "/config/more.yaml") << pod("late-1", "late", "10.0.0.2");
  bool granted = false;
  auto deadline = Monotonic::now() + seconds(20);
  while (!granted && Monotonic::now() < deadline)
    granted = controller.ask(client, test::spiffe("default", "late")).has_value();
  CHECK(granted);
}

TEST_CASE("the root survives a restart, and a client reconnects by itself") {
  Controller controller;
  CaClient client(controller.reactor, {.target = controller.target()});
  auto before = controller.ask(client, test::spiffe("default", "web"));
  REQUIRE(before);
  CHECK(WIFEXITED(controller.stop()));
  CHECK_FALSE(std::filesystem::exists(controller.socket));
  auto down = controller.ask(client, test::spiffe("default", "web"));
  REQUIRE_FALSE(down);
  CHECK(down.error().message.find("code 14") != std::string::npos);
  controller.start();
  auto after = controller.ask(client, test::spiffe("default", "web"));
  REQUIRE(after);
  CHECK(after->roots_pem == before->roots_pem);
}

TEST_CASE("the store fills itself from the authority") {
  Controller controller;
  CaClient client(controller.reactor, {.target = controller.target()});
  Clock clock;
  CredentialStore store(
      controller.reactor, clock, client, {.lifetime = seconds(60)}, [](auto&, auto) {}, [](auto) {});
  store.set_wanted({test::spiffe("default", "web")});
  REQUIRE(controller.until([&] { return store.complete(); }));
  CHECK(store.trust());
}

TEST_CASE("wrong methods, broken messages and late answers end with their codes") {
  Controller controller;
  http::GrpcClient client(controller.reactor, controller.target());
  CHECK(call(controller, client, {.path = "/istio.v1.auth.IstioCertificateService/Nothing"}).code ==
        http::GrpcCode::unimplemented);
  auto broken =
      call(controller, client,
           {.path = "/istio.v1.auth.IstioCertificateService/CreateCertificate", .message = "\xff\xff"});
  CHECK(broken.code != http::GrpcCode::ok);
  auto huge = call(controller, client,
                   {.path = "/istio.v1.auth.IstioCertificateService/CreateCertificate",
                    .message = std::string(100'000, '\n')});
  CHECK(huge.code == http::GrpcCode::resource_exhausted);
  auto empty = call(controller, client, {.path = "/istio.v1.auth.IstioCertificateService/CreateCertificate"});
  CHECK(empty.code == http::GrpcCode::unauthenticated);
  CHECK(client.connected());
}

TEST_CASE("a server that never answers is left at the deadline; one that talks nonsense is lost") {
  char name[] = "/tmp/nodemesh-grpc-XXXXXX";
  std::string dir = ::mkdtemp(name);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::strcpy(address.sun_path, (dir + "/s").c_str());
  Fd listener(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  REQUIRE(::bind(listener.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) == 0);
  REQUIRE(::listen(listener.get(), 4) == 0);
  io::Reactor reactor;
  http::GrpcClient client(reactor, {.unix_path = dir + "/s"});
  std::optional<http::GrpcReply> reply;
  client.call({.path = "/a/b", .timeout = milliseconds(50)}, [&](auto got) { reply = std::move(got); });
  auto deadline = Monotonic::now() + seconds(10);
  while (!reply && Monotonic::now() < deadline) reactor.run_once(milliseconds(10));
  REQUIRE(reply);
  CHECK(reply->code == http::GrpcCode::deadline_exceeded);
  CHECK_FALSE(client.connected());  // not a byte came: the next call gets a connection of its own
  Fd silent(::accept(listener.get(), nullptr, nullptr));
  reply.reset();
  client.call({.path = "/a/b"}, [&](auto got) { reply = std::move(got); });
  reactor.run_once(milliseconds(10));
  Fd peer(::accept(listener.get(), nullptr, nullptr));
  std::string nonsense = "HTTP/1.1 400 Bad Request\r\n\r\nthis is not HTTP/2 at all, nor will it ever be";
  REQUIRE(::write(peer.get(), nonsense.data(), nonsense.size()) > 0);
  while (!reply && Monotonic::now() < deadline) reactor.run_once(milliseconds(10));
  REQUIRE(reply);
  CHECK(reply->code == http::GrpcCode::unavailable);
  std::filesystem::remove_all(dir);
}

TEST_CASE("a gRPC message is one uncompressed message of the length it says") {
  using http::parse_grpc_message;
  CHECK(*parse_grpc_message(std::string_view("\0\0\0\0\2ab", 7)) == "ab");
  CHECK(*parse_grpc_message(std::string_view("\0\0\0\0\0", 5)) == "");
  CHECK_FALSE(parse_grpc_message(""));
  CHECK_FALSE(parse_grpc_message(std::string_view("\1\0\0\0\2ab", 7)));
  CHECK_FALSE(parse_grpc_message(std::string_view("\0\0\0\0\3ab", 7)));
  CHECK_FALSE(parse_grpc_message(std::string_view("\0\0\0\0\1ab", 7)));
  CHECK_FALSE(
      parse_grpc_message(std::string_view("\0\xff\xff\xff\xff"
                                          "ab",
                                          7)));
  CHECK(http::decode_grpc_text("a%20b%zz%4") == "a b%zz%4");
}

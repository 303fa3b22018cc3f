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
#include <list>
#include <optional>

#include "base/addr.h"
#include "controller/tls_front.h"
#include "http/grpc_client.h"
#include "identity/ca_client.h"
#include "identity/store.h"
#include "io/reactor.h"
#include "io/socket.h"
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

namespace {

// TLS in front of the controller's Unix socket: what it decrypts is carried there and back.
struct Bridge final : private io::EventHandler {
  Bridge(io::Reactor& r, Fd a, Fd b) : reactor(r), one(std::move(a)), other(std::move(b)) {
    for (Fd* fd : {&one, &other}) REQUIRE(reactor.add(fd->get(), *this));
  }
  ~Bridge() {
    for (Fd* fd : {&one, &other}) reactor.remove(fd->get(), *this);
  }
  void on_events(uint32_t) override {
    char chunk[8192];
    for (auto [from, to] : {std::pair(&one, &other), std::pair(&other, &one)}) {
      ssize_t got = 0;
      while ((got = ::recv(from->get(), chunk, sizeof chunk, MSG_DONTWAIT)) > 0)
        REQUIRE(::send(to->get(), chunk, static_cast<size_t>(got), MSG_NOSIGNAL) == got);
      if (got == 0) ::shutdown(to->get(), SHUT_WR);
    }
  }
  io::Reactor& reactor;
  Fd one, other;
};

Fd connect_unix(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::strcpy(address.sun_path, path.c_str());
  Fd out(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  REQUIRE(::connect(out.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) == 0);
  return out;
}

struct SecureController {
  Controller controller;
  test::TestCa ca{"server root"};
  std::string roots = controller.dir + "/roots.pem";
  std::string token = controller.dir + "/token";
  std::list<Bridge> bridges;
  tls::SslCtxPtr context;
  std::unique_ptr<controller::TlsFront> front;
  uint16_t port = 0;

  explicit SecureController(std::vector<std::string> dns = {"ca.test"}) {
    std::ofstream(roots) << ca.root_pem();
    std::ofstream(token) << "a.b.c\n";
    show(ca, std::move(dns));
    Fd listener(::socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    sockaddr_storage any{};
    socklen_t size = SockAddr{Addr::v4(127, 0, 0, 1), 0}.to_native(any, AF_INET);
    REQUIRE(::bind(listener.get(), reinterpret_cast<sockaddr*>(&any), size) == 0);
    REQUIRE(::listen(listener.get(), 16) == 0);
    port = io::local_address(listener.get()).port;
    auto started = controller::TlsFront::start(
        controller.reactor, std::move(listener), {.max_of_address = 4, .handshake = milliseconds(300)},
        [this] { return context.get(); },
        [this](Fd peer, const std::string&) {
          bridges.emplace_back(controller.reactor, std::move(peer), connect_unix(controller.socket));
        });
    REQUIRE(started);
    front = std::move(*started);
  }
  void show(const test::TestCa& by, std::vector<std::string> dns) {
    auto issued = by.issue({.uris = {}, .dns = std::move(dns)});
    auto made =
        controller::make_server_context(tls::parse_private_key(issued.key_pem)->get(), {issued.chain_pem});
    REQUIRE(made);
    context = std::move(*made);
  }
  CaClient::Settings settings(const std::string& name = "ca.test",
                              const std::string& host = "127.0.0.1") const {
    return {.target = {.unix_path = {},
                       .host = host,
                       .port = port,
                       .tls = http::ClientTls{.roots_file = roots, .server_name = name}},
            .token_file = token};
  }
  std::string error(const CaClient::Settings& settings) {
    CaClient client(controller.reactor, settings);
    auto issued = controller.ask(client, test::spiffe("default", "web"));
    return issued ? "" : issued.error().message;
  }
};

}  // namespace

TEST_CASE("an authority behind TLS is asked by name or address, and its certificate is for exactly that") {
  SecureController secure;
  CHECK(secure.error(secure.settings()) == "");
  CHECK(secure.error(secure.settings("ca.test", "localhost")) == "");
  CHECK(secure.error(secure.settings("other.test")).find("not good for other.test") != std::string::npos);
  CHECK(secure.error(secure.settings("127.0.0.1")).find("not good for 127.0.0.1") != std::string::npos);
  CHECK(secure.error(secure.settings("")).find("no name that a server can have") != std::string::npos);
  CHECK(secure.error(secure.settings("ca.test", "no-such-host.invalid")).find("cannot resolve") !=
        std::string::npos);
}

TEST_CASE(
    "the roots of the authority are read anew for each connection, and without good ones nothing is sent") {
  SecureController secure;
  test::TestCa stranger("stranger");
  std::ofstream(secure.roots, std::ios::trunc) << stranger.root_pem();
  CHECK(secure.error(secure.settings()).find("not good for ca.test") != std::string::npos);
  std::ofstream(secure.roots, std::ios::trunc) << "nothing";
  CHECK(secure.error(secure.settings()).find("holds no PEM certificate") != std::string::npos);
  std::ofstream(secure.roots, std::ios::trunc) << secure.ca.root_pem() << std::string(1 << 20, '\n');
  CHECK(secure.error(secure.settings()).find("is longer than 1 MiB") != std::string::npos);
  std::filesystem::remove(secure.roots);
  CHECK(secure.error(secure.settings()).find("roots file") != std::string::npos);
  CHECK(secure.bridges.empty());
  // One client over a rotation: its connection is lost, and the next is checked against the new root.
  std::ofstream(secure.roots, std::ios::trunc) << secure.ca.root_pem();
  CaClient client(secure.controller.reactor, secure.settings());
  CHECK(secure.controller.ask(client, test::spiffe("default", "web")));
  secure.show(stranger, {"ca.test"});
  std::ofstream(secure.roots, std::ios::trunc) << stranger.root_pem();
  secure.bridges.clear();
  CHECK(secure.controller.until([&] { return secure.front->connections() == 0; }));
  bool again = false;  // a call that was made before the loss was seen fails
  for (int i = 0; i < 3 && !again; ++i)
    again = secure.controller.ask(client, test::spiffe("default", "web")).has_value();
  CHECK(again);
}

TEST_CASE("a token that is not there, or is no token, is an error before anything is sent") {
  SecureController secure;
  std::filesystem::remove(secure.token);
  CHECK(secure.error(secure.settings()).find("token file") != std::string::npos);
  std::ofstream(secure.token) << "two words";
  CHECK(secure.error(secure.settings()).find("holds bytes that no token has") != std::string::npos);
}

TEST_CASE("peers that never finish a handshake are bounded in number and in time") {
  SecureController secure;
  std::vector<Fd> idle;
  sockaddr_storage to{};
  socklen_t size = SockAddr{Addr::v4(127, 0, 0, 1), secure.port}.to_native(to, AF_INET);
  for (int i = 0; i < 8; ++i) {
    idle.emplace_back(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    REQUIRE(::connect(idle.back().get(), reinterpret_cast<sockaddr*>(&to), size) == 0);
  }
  auto& front = *secure.front;
  CHECK(secure.controller.until([&] { return front.counters().refused == 4; }));
  CHECK(front.counters().accepted == 4);
  CHECK(secure.controller.until([&] { return front.connections() == 0; }));  // their time is over
  CHECK(front.counters().failed_handshakes == 4);
  CHECK(secure.error(secure.settings()) == "");
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

TEST_CASE(
    "after a replica has said that it cannot serve now the next call goes to whom the name gives then") {
  char name[] = "/tmp/nodemesh-grpc-XXXXXX";
  std::string dir = ::mkdtemp(name);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::strcpy(address.sun_path, (dir + "/s").c_str());
  Fd listener(::socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  REQUIRE(::bind(listener.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) == 0);
  REQUIRE(::listen(listener.get(), 4) == 0);
  io::Reactor reactor;
  http::GrpcClient client(reactor, {.unix_path = dir + "/s"});
  auto deadline = Monotonic::now() + seconds(10);
  // SETTINGS, and an answer on the connection's first stream: ":status: 200", "grpc-status: " and the code.
  auto answers = [&](std::string code) {
    std::string block = "\x88" + std::string("\0\x0bgrpc-status", 13) + static_cast<char>(code.size()) + code;
    std::string bytes = std::string("\0\0\0\4\0\0\0\0\0", 9) + std::string("\0\0", 2) +
                        static_cast<char>(block.size()) + std::string("\1\5\0\0\0\1", 6) + block;
    std::optional<http::GrpcReply> reply;
    client.call({.path = "/a/b"}, [&](auto got) { reply = std::move(got); });
    Fd peer;
    while (!reply && Monotonic::now() < deadline) {
      if (!peer && (peer = Fd(::accept(listener.get(), nullptr, nullptr))))
        REQUIRE(::write(peer.get(), bytes.data(), bytes.size()) > 0);
      reactor.run_once(milliseconds(10));
    }
    REQUIRE(reply);
    return std::pair(std::move(peer), static_cast<int>(reply->code));
  };
  auto [tired, first] = answers("14");
  CHECK(first == static_cast<int>(http::GrpcCode::unavailable));
  auto [other, second] = answers("16");
  CHECK(other);  // a connection of its own
  CHECK(second == static_cast<int>(http::GrpcCode::unauthenticated));
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

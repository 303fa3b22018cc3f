#include <doctest/doctest.h>

#include <fcntl.h>
#include <netinet/in.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <algorithm>
#include <filesystem>
#include <fstream>

#include "warden/channel.h"

using namespace nodemesh;
using namespace nodemesh::warden;

namespace {

struct TempDir {
  std::string path;
  TempDir() {
    char name[] = "/tmp/nodemesh-channel-XXXXXX";
    path = ::mkdtemp(name);
  }
  ~TempDir() { std::filesystem::remove_all(path); }
};

// The proxy's side: remembers what it was told.
struct Told final : WardenLinkEvents {
  int connected = 0, snapshots = 0, keys = 0, closed = 0;
  bool superseded = false;
  Fd last_keys;
  std::vector<Pod> added, updated;
  std::vector<PodListeners> listeners;
  std::vector<uint64_t> gone;
  std::vector<std::vector<Fd>> sockets;
  std::vector<uint32_t> answered;  // the requests that `sockets` answer
  std::string why;
  void on_warden_connected(const Welcome&) override { ++connected; }
  void on_pod_add(Pod pod, PodListeners got) override {
    added.push_back(std::move(pod));
    listeners.push_back(std::move(got));
  }
  void on_pod_update(Pod pod) override { updated.push_back(std::move(pod)); }
  void on_pod_gone(uint64_t cookie) override { gone.push_back(cookie); }
  void on_sockets(const Sockets& answer, std::vector<Fd> got) override {
    answered.push_back(answer.request);
    sockets.push_back(std::move(got));
  }
  void on_keys(Fd got) override {
    ++keys;
    last_keys = std::move(got);
  }
  void on_kernel_stats(const KernelStats&) override {}
  void on_snapshot_sent() override { ++snapshots; }
  void on_superseded() override { superseded = true; }
  void on_warden_closed(const Error& error) override {
    ++closed;
    why = error.message;
  }
};

// The warden's side: accepts one proxy at a time and remembers what it said.
struct Heard final : ProxyChannelEvents {
  std::unique_ptr<ProxyChannel> channel;
  std::vector<ProxyMessage> messages;
  std::vector<std::vector<Fd>> descriptors;
  std::vector<uint32_t> requests;  // of WANT_SOCKETS
  int closed = 0;
  std::string why;
  void on_proxy_message(ProxyChannel& from, ProxyMessage message, std::vector<Fd> got) override {
    if (std::holds_alternative<WantSockets>(message)) requests.push_back(from.request());
    messages.push_back(std::move(message));
    descriptors.push_back(std::move(got));
  }
  void on_proxy_closed(ProxyChannel&, const Error& error) override {
    ++closed;
    why = error.message;
    channel.reset();
  }
  template <class Message>
  size_t count() const {
    return static_cast<size_t>(
        std::ranges::count_if(messages, [](const auto& m) { return std::holds_alternative<Message>(m); }));
  }
};

struct Fixture {
  TempDir dir;
  io::Reactor reactor;
  Heard heard;
  Told told;
  std::unique_ptr<ChannelListener> listener;
  std::string path = dir.path + "/warden.sock";

  Result<std::unique_ptr<ChannelListener>> listen() {
    return ChannelListener::create(reactor, path, ::getuid(), ::getgid(), [this](Fd socket, pid_t peer) {
      heard.channel = std::make_unique<ProxyChannel>(reactor, heard, std::move(socket), peer);
    });
  }
  void start() {
    auto made = listen();
    REQUIRE(made);
    listener = std::move(*made);
  }
  template <class Condition>
  bool until(Condition condition) {
    auto deadline = Monotonic::now() + seconds(10);
    while (!condition() && Monotonic::now() < deadline) reactor.run_once(milliseconds(50));
    return condition();
  }
};

Fd plain_socket() {
  return Fd(::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
}

Fd sealed_memory(std::string_view text) {
  Fd fd(::memfd_create("keys", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  REQUIRE(::write(fd.get(), text.data(), text.size()) == static_cast<ssize_t>(text.size()));
  ::fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE);
  return fd;
}

Pod pod_with(uint64_t cookie) {
  return {.cookie = cookie,
          .uid = "u",
          .ns = "shop",
          .name = "web",
          .addresses = {Addr::v4(10, 0, 0, 1)},
          .enrolled = true};
}

void send_listeners(ProxyChannel& channel, uint64_t cookie, size_t workers) {
  std::vector<Fd> sockets;
  std::vector<int> numbers;
  for (size_t i = 0; i < workers * NM_LISTENER_COUNT; ++i) {
    sockets.push_back(plain_socket());
    numbers.push_back(sockets.back().get());
  }
  channel.send(PodAdd{to_record(pod_with(cookie))}, numbers);
}

}  // namespace

TEST_CASE("a proxy greets, is welcomed and gets a pod with its listeners by kind and worker") {
  Fixture f;
  f.start();
  WardenLink link(f.reactor, f.told, f.path, 2, ::getuid());
  REQUIRE(f.until([&] { return f.heard.count<ReturnDone>() == 1; }));
  CHECK(std::get<Hello>(f.heard.messages[0]).workers == 2);
  f.heard.channel->send(Welcome{.generation = 3});
  send_listeners(*f.heard.channel, 42, 2);
  f.heard.channel->send(SnapshotSent{});
  REQUIRE(f.until([&] { return f.told.snapshots == 1; }));
  REQUIRE(f.told.listeners.size() == 1);
  for (const auto& kind : f.told.listeners[0]) CHECK(kind.size() == 2);
  CHECK(f.told.added[0] == pod_with(42));
  link.takeover_ready(42);
  CHECK(f.until([&] { return f.heard.count<TakeoverReady>() == 1; }));
  CHECK_FALSE(f.told.superseded);
  f.heard.channel->send(Superseded{});
  CHECK(f.until([&] { return f.told.superseded; }));
}

TEST_CASE("a link without a warden keeps trying and says once why") {
  Fixture f;
  WardenLink link(f.reactor, f.told, f.path, 1, ::getuid());
  REQUIRE(f.until([&] { return f.told.closed == 1; }));
  CHECK_FALSE(link.want_sockets(1, SocketKind::out, 1));
  auto later = Monotonic::now() + milliseconds(350);
  f.until([&] { return Monotonic::now() > later; });
  CHECK(f.told.closed == 1);
  f.start();
  CHECK(f.until([&] { return f.heard.count<ReturnDone>() == 1; }));
}

TEST_CASE("a new warden is given back the listeners and the keys that the old one knew") {
  Fixture f;
  f.start();
  WardenLink link(f.reactor, f.told, f.path, 1, ::getuid());
  REQUIRE(f.until([&] { return f.heard.count<ReturnDone>() == 1; }));
  f.heard.channel->send(Welcome{.generation = 1});
  send_listeners(*f.heard.channel, 42, 1);
  REQUIRE(f.until([&] { return f.told.added.size() == 1; }));
  link.takeover_ready(42);
  link.store_keys(sealed_memory("secret").get());
  REQUIRE(f.until([&] { return f.heard.count<StoreKeys>() == 1; }));

  f.heard.messages.clear();
  f.heard.descriptors.clear();
  f.heard.channel.reset();  // the warden dies
  REQUIRE(f.until([&] { return f.heard.count<ReturnDone>() == 1; }));
  CHECK(f.told.closed == 1);
  REQUIRE(f.heard.count<ReturnListeners>() == 1);
  CHECK(std::get<ReturnListeners>(f.heard.messages[1]).cookie == 42);
  CHECK(f.heard.descriptors[1].size() == 3);
  REQUIRE(f.heard.count<StoreKeys>() == 1);
  char text[7] = {};
  CHECK(::pread(f.heard.descriptors[2][0].get(), text, 6, 0) == 6);
  CHECK(std::string(text) == "secret");

  // "Keep what you have" reaches the proxy as an update, and the warden hears that it accepts.
  f.heard.channel->send(Welcome{.generation = 2});
  f.heard.channel->send(PodAdd{to_record(pod_with(42))});
  REQUIRE(f.until([&] { return f.told.updated.size() == 1; }));
  CHECK(f.told.added.size() == 1);
  CHECK(f.until([&] { return f.heard.count<TakeoverReady>() == 1; }));
}

TEST_CASE("a link that notices the warden's end while it sends says so once, and why") {
  Fixture f;
  f.start();
  WardenLink link(f.reactor, f.told, f.path, 1, ::getuid());
  REQUIRE(f.until([&] { return f.heard.count<ReturnDone>() == 1; }));
  f.heard.channel->send(Welcome{.generation = 1});
  REQUIRE(f.until([&] { return f.told.connected == 1; }));
  f.listener.reset();  // so that it does not come back
  f.heard.channel.reset();
  CHECK_FALSE(link.want_kernel_stats());
  f.reactor.run_once(milliseconds(0));
  CHECK(f.told.closed == 1);
  CHECK(f.told.why != "");
}

TEST_CASE("a pod that is gone is not returned to the next warden") {
  Fixture f;
  f.start();
  WardenLink link(f.reactor, f.told, f.path, 1, ::getuid());
  REQUIRE(f.until([&] { return f.heard.count<ReturnDone>() == 1; }));
  f.heard.channel->send(Welcome{.generation = 1});
  send_listeners(*f.heard.channel, 42, 1);
  f.heard.channel->send(PodGone{.cookie = 42});
  REQUIRE(f.until([&] { return f.told.gone.size() == 1; }));
  f.heard.messages.clear();
  f.heard.channel.reset();
  REQUIRE(f.until([&] { return f.heard.count<ReturnDone>() == 1; }));
  CHECK(f.heard.count<ReturnListeners>() == 0);
}

TEST_CASE("a proxy that drains returns no listener and takes none, and still hears of the pods it serves") {
  Fixture f;
  f.start();
  WardenLink link(f.reactor, f.told, f.path, 1, ::getuid());
  REQUIRE(f.until([&] { return f.heard.count<ReturnDone>() == 1; }));
  f.heard.channel->send(Welcome{.generation = 1});
  send_listeners(*f.heard.channel, 42, 1);
  REQUIRE(f.until([&] { return f.told.added.size() == 1; }));
  link.takeover_ready(42);
  REQUIRE(f.until([&] { return f.heard.count<TakeoverReady>() == 1; }));
  link.drain();
  f.told.listeners.clear();  // as the workers do

  f.heard.messages.clear();
  f.heard.descriptors.clear();
  f.heard.channel.reset();
  REQUIRE(f.until([&] { return f.heard.count<ReturnDone>() == 1; }));
  CHECK(std::get<Hello>(f.heard.messages[0]).flags == Hello::kDraining);
  CHECK(f.heard.count<ReturnListeners>() == 0);

  f.heard.channel->send(Welcome{.generation = 2});
  f.heard.channel->send(PodAdd{to_record(pod_with(42))});
  send_listeners(*f.heard.channel, 42, 1);
  send_listeners(*f.heard.channel, 43, 1);
  f.heard.channel->send(PodAdd{to_record(pod_with(44))});
  f.heard.channel->send(SnapshotSent{});
  REQUIRE(f.until([&] { return f.told.snapshots == 1; }));
  CHECK(f.told.added.size() == 1);
  CHECK(f.told.listeners.empty());
  REQUIRE(f.told.updated.size() == 2);
  CHECK(f.told.updated[0] == pod_with(42));
  CHECK(f.told.updated[1] == pod_with(42));
  link.takeover_ready(42);
  REQUIRE(link.want_sockets(42, SocketKind::in, 1));
  REQUIRE(f.until([&] { return f.heard.count<WantSockets>() == 1; }));
  CHECK(f.heard.count<TakeoverReady>() == 0);
}

TEST_CASE("sockets and a refusal arrive under the number of their question, in whatever order") {
  Fixture f;
  f.start();
  WardenLink link(f.reactor, f.told, f.path, 1, ::getuid());
  REQUIRE(f.until([&] { return f.heard.count<ReturnDone>() == 1; }));
  f.heard.channel->send(Welcome{.generation = 1});
  REQUIRE(f.until([&] { return link.connected(); }));
  auto first = link.want_sockets(42, SocketKind::in, 2), second = link.want_sockets(42, SocketKind::in, 1);
  REQUIRE((first && second && *first != *second));
  REQUIRE(f.until([&] { return f.heard.count<WantSockets>() == 2; }));
  CHECK(f.heard.requests == std::vector{*first, *second});
  Fd one = plain_socket(), two = plain_socket();
  std::array<int, 2> numbers{one.get(), two.get()};
  f.heard.channel->send(Sockets{.cookie = 42, .kind = 1, .reason = NM_REASON_POD_GONE, .request = *second});
  f.heard.channel->send(Sockets{.cookie = 42, .kind = 1, .count = 2, .request = *first}, numbers);
  REQUIRE(f.until([&] { return f.told.sockets.size() == 2; }));
  CHECK(f.told.answered == std::vector{*second, *first});
  CHECK(f.told.sockets[0].empty());
  CHECK(f.told.sockets[1].size() == 2);
}

TEST_CASE("bytes that are no message end the hostile proxy's channel and nothing else") {
  Fixture f;
  f.start();
  sockaddr_un address{.sun_family = AF_UNIX};
  f.path.copy(address.sun_path, sizeof address.sun_path - 1);
  for (std::string_view junk : {"x", "GET / HTTP/1.1\r\n\r\n", "\x01\x00\x10\x00\x01\x00\x00\x00"}) {
    Fd hostile(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
    REQUIRE(::connect(hostile.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) == 0);
    int before = f.heard.closed;
    ::send(hostile.get(), junk.data(), junk.size(), 0);
    REQUIRE(f.until([&] { return f.heard.closed == before + 1; }));
    CHECK(f.heard.messages.empty());
  }
  std::string huge(60000, 'x');
  Fd hostile(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  REQUIRE(::connect(hostile.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) == 0);
  ::send(hostile.get(), huge.data(), huge.size(), 0);
  REQUIRE(f.until([&] { return f.heard.closed == 4; }));
  WardenLink link(f.reactor, f.told, f.path, 1, ::getuid());
  CHECK(f.until([&] { return f.heard.count<ReturnDone>() == 1; }));
}

TEST_CASE("descriptors beside a refused message are closed") {
  Fixture f;
  f.start();
  sockaddr_un address{.sun_family = AF_UNIX};
  f.path.copy(address.sun_path, sizeof address.sun_path - 1);
  Fd raw(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  REQUIRE(::connect(raw.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) == 0);
  int pipe_ends[2];
  REQUIRE(::pipe2(pipe_ends, O_CLOEXEC | O_NONBLOCK) == 0);
  Fd reader(pipe_ends[0]), writer(pipe_ends[1]);
  PacketSocket hostile(std::move(raw));
  int number = writer.get();
  REQUIRE(hostile.send(TakeoverReady{.cookie = 1}, {&number, 1}));
  writer.reset();
  REQUIRE(f.until([&] { return f.heard.closed == 1; }));
  char byte;
  CHECK(::read(reader.get(), &byte, 1) == 0);  // the last writer is gone
}

TEST_CASE(
    "the warden's socket replaces a stale file, and refuses to take one that is served or is something "
    "else") {
  Fixture f;
  f.start();
  auto second = f.listen();
  REQUIRE_FALSE(second);
  CHECK(second.error().message.find("another warden") != std::string::npos);
  f.listener.reset();
  CHECK_FALSE(std::filesystem::exists(f.path));

  sockaddr_un address{.sun_family = AF_UNIX};
  f.path.copy(address.sun_path, sizeof address.sun_path - 1);
  {
    Fd stale(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
    REQUIRE(::bind(stale.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) == 0);
  }
  f.start();
  struct stat file{};
  REQUIRE(::stat(f.path.c_str(), &file) == 0);
  CHECK((file.st_mode & 0777) == 0660);
  f.listener.reset();

  std::ofstream(f.path) << "a file";
  auto third = f.listen();
  REQUIRE_FALSE(third);
  CHECK(std::filesystem::is_regular_file(f.path));
  f.path = "/tmp/" + std::string(200, 'x');
  CHECK_FALSE(f.listen());
}

TEST_CASE("a warden of another user is not trusted") {
  Fixture f;
  f.start();
  WardenLink link(f.reactor, f.told, f.path, 1, ::getuid() + 1);
  REQUIRE(f.until([&] { return f.told.closed == 1; }));
  CHECK(f.told.why.find("uid") != std::string::npos);
  CHECK(f.heard.messages.empty());
}

TEST_CASE("a peer that does not read is cut off instead of filling memory") {
  int pair[2];
  REQUIRE(::socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) == 0);
  Fd silent(pair[1]);
  PacketSocket socket{Fd(pair[0])};
  size_t sent = 0;
  while (sent < 100000 && socket.send(KernelStats{})) ++sent;
  CHECK(sent < 10000);
}

// The file for a start without the API server: its format, what is refused, and how a cluster writes and
// reads it.
#include <filesystem>

#include "kube/cluster.h"
#include "kube/snapshot_file.h"
#include "kube_fixtures.h"

using namespace nodemesh;
using namespace nodemesh::kube;
using namespace nodemesh::test;

namespace {

const SnapshotHeader kHeader{
    .node = "node-1", .server = {"aa", "bb"}, .kinds = {"pods", "services"}, .root_namespace = "mesh"};
constexpr WallClock::time_point kThen{seconds(1'700'000'000)};

std::string read_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

void write_file(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
  ::chmod(path.c_str(), 0600);
}

std::string record(const std::string& name, const std::string& body) {
  std::string out;
  REQUIRE(append_record(out, {.kind = "Service", .ns = "shop", .name = name, .version = "7", .body = body}));
  return out;
}

// "a b", or why not.
std::string names_in(const std::string& path) {
  auto reader = SnapshotReader::open(path, 1 << 20);
  if (!reader) return reader.error().message;
  std::string names;
  for (;;) {
    auto frame = reader->next();
    if (!frame) return frame.error().message;
    if (!*frame) return names + (reader->cut() ? "cut" : "");
    for (auto payload = **frame; !payload.empty();) {
      auto one = take_record(payload);
      if (!one) return one.error().message;
      names += std::string(one->name) + " ";
    }
  }
}

struct FileFixture {
  TempDir dir;
  std::string path = dir.path + "/snapshot";
  std::string bytes;

  FileFixture() {
    auto writer = SnapshotWriter::create(path, kHeader);
    REQUIRE(writer);
    REQUIRE(writer->append(kThen, record("a", "{}") + record("b", "{\"x\":1}")));
    REQUIRE(writer->append(kThen, record("c", "{}")));
    bytes = read_file(path);
    CHECK(bytes.size() == writer->size());
  }
  std::string refusal(const std::string& changed) {
    write_file(path, changed);
    return names_in(path);
  }
};

}  // namespace

TEST_CASE_FIXTURE(FileFixture, "a snapshot file gives back its header, its records and their time") {
  CHECK(names_in(path) == "a b c ");
  auto reader = SnapshotReader::open(path, 1 << 20);
  REQUIRE(reader);
  CHECK(reader->header() == kHeader);
  auto frame = reader->next();
  REQUIRE((frame && *frame));
  CHECK(reader->as_of() == kThen);
  std::string_view payload = **frame;
  auto first = take_record(payload);
  REQUIRE(first);
  CHECK(*first == SnapshotRecord{.kind = "Service", .ns = "shop", .name = "a", .version = "7", .body = "{}"});
  struct stat file{};
  REQUIRE(::stat(path.c_str(), &file) == 0);
  CHECK((file.st_mode & 07777) == 0600);
}

TEST_CASE_FIXTURE(FileFixture, "a snapshot file with one changed bit is refused, wherever the bit is") {
  for (size_t at = 0; at < bytes.size(); ++at) {
    std::string changed = bytes;
    changed[at] = static_cast<char>(changed[at] ^ (1 << (at % 8)));
    INFO("byte ", at);
    std::string got = refusal(changed);
    CHECK((got.starts_with("it is") || got.starts_with("its")));
  }
}

TEST_CASE_FIXTURE(FileFixture, "a snapshot file that was cut off is read up to its last whole frame") {
  size_t most = 0;
  for (size_t length = 0; length < bytes.size(); ++length) {
    std::string got = refusal(bytes.substr(0, length));
    INFO("length ", length, ": ", got);
    bool refused = got.starts_with("it is") || got.starts_with("its");
    CHECK((refused || got == "cut" || got == "" || got == "a b cut" || got == "a b "));
    if (got == "a b ") ++most;
  }
  CHECK(most == 1);  // at the very end of the second frame
}

TEST_CASE_FIXTURE(FileFixture, "a snapshot file with frames in another order, or one twice, is refused") {
  auto frame = [&](size_t from, size_t to) { return bytes.substr(from, to - from); };
  size_t third = bytes.size() - (16 + record("c", "{}").size() + 32);
  size_t second = third - (16 + record("a", "{}").size() + record("b", "{\"x\":1}").size() + 32);
  CHECK(refusal(frame(0, second) + frame(third, bytes.size())).starts_with("it is corrupted"));
  CHECK(refusal(bytes + frame(third, bytes.size())).starts_with("it is corrupted"));
}

TEST_CASE_FIXTURE(FileFixture, "another format, another owner, a link and a giant are refused by name") {
  CHECK(refusal("nodemesh-snapshot-0\n" + bytes.substr(20)) ==
        "its format is nodemesh-snapshot-0, and nodemesh-snapshot-1 is read");
  CHECK(refusal("") == "it is no snapshot");
  CHECK(refusal("#!/bin/sh") == "it is no snapshot");
  write_file(path, bytes);
  ::chmod(path.c_str(), 0640);
  CHECK(names_in(path).find("mode 640") != std::string::npos);
  ::chmod(path.c_str(), 0600);
  auto small = SnapshotReader::open(path, 100);
  REQUIRE_FALSE(small);
  CHECK(small.error().message.find("more than the 100 allowed") != std::string::npos);
  REQUIRE(::symlink(path.c_str(), (dir.path + "/link").c_str()) == 0);
  CHECK_FALSE(SnapshotReader::open(dir.path + "/link", 1 << 20));
  auto none = SnapshotReader::open(dir.path + "/none", 1 << 20);
  REQUIRE_FALSE(none);
  CHECK(none.error().reason == Reason::NONE);
}

TEST_CASE("a snapshot of another node, cluster, root namespace or of fewer kinds is refused") {
  CHECK(check_header(kHeader, kHeader));
  auto refusal = [](auto change) {
    SnapshotHeader wanted = kHeader;
    change(wanted);
    auto checked = check_header(kHeader, wanted);
    return checked ? "" : checked.error().message;
  };
  CHECK(refusal([](auto& wanted) { wanted.node = "node-2"; }) == "it is of node \"node-1\"");
  CHECK(refusal([](auto& wanted) { wanted.server = {"cc"}; }).starts_with("it is of another cluster"));
  CHECK(
      refusal([](auto& wanted) { wanted.server = {"cc", "bb"}; }).empty());  // a root that is being replaced
  CHECK_FALSE(refusal([](auto& wanted) { wanted.root_namespace = "x"; }).empty());
  CHECK(refusal([](auto& wanted) { wanted.kinds.push_back("nodes"); }) == "it has no nodes");
  CHECK(refusal([](auto& wanted) { wanted.kinds = {"pods"}; }).empty());
}

namespace {

std::shared_ptr<const Decoded> read_any(const Object&, Fields& fields, Problems&) {
  fields.ignore({"spec", "status"});
  return std::make_shared<const Decoded>();
}

constexpr std::string_view kServiceFields[] = {"spec.ports.port", "status"};
const Kind kKinds[] = {
    {"", "Namespace", {"v1"}, false, read_any, true},
    {"", "Service", {"v1"}, true, read_any, false, kServiceFields},
};

struct SnapshotFixture : ApiFixture {
  TempDir dir;
  std::string path = dir.path + "/snapshot";
  std::map<std::string, ApiServer::Call*> open;
  bool away = false;
  std::string services;  // what their list holds: WatchList events
  int told = 0;
  uint64_t max_size = 1 << 20, slack = 4 << 20;
  std::string node = "node-1";
  std::unique_ptr<Cluster> cluster;

  SnapshotFixture() {
    serve(true);
    server->handle = [this](ApiServer::Call& call) {
      if (away) return call.cut();
      std::string target = call.target.substr(0, call.target.find('?'));
      std::string plural = target.substr(target.rfind('/') + 1);
      call.start(200);
      open[plural] = &call;
      if (plural == "services") call.send(services);
      call.send(bookmark_json(50, true));
    };
  }
  ~SnapshotFixture() { cluster.reset(); }

  void start() {
    told = 0;
    ClusterOptions options{.node = node, .settle = milliseconds(0)};
    options.watch_times = {.first_retry = milliseconds(10), .max_retry = milliseconds(50), .seed = 1};
    options.snapshot = {.path = path, .max_size = max_size, .flush = milliseconds(1), .slack = slack};
    options.snapshot_after = milliseconds(100);
    cluster = std::make_unique<Cluster>(reactor, clock, access(), kKinds, options);
    REQUIRE(cluster->start([this] { ++told; }));
  }
  void restart() {
    cluster.reset();
    server->cut_all();
    open.clear();
    start();
  }
  // A process that has read the two Services `a` and `b` and has ended.
  void write() {
    services = event_json("ADDED", object_json("a", 3)) + event_json("ADDED", object_json("b", 4));
    start();
    turn_until([&] { return told == 1; });
    CHECK(cluster->origin() == Source::Origin::api);
    CHECK(cluster->snapshot_problem() == "");
    cluster.reset();
  }
  std::string names() const {
    std::string out;
    for (const auto& entry : cluster->store().objects("Service")) out += entry.object->key.name + " ";
    return out;
  }
};

}  // namespace

TEST_CASE_FIXTURE(SnapshotFixture,
                  "an agent that starts without its API server serves what the one before it had read") {
  write();
  away = true;
  restart();
  turn_until([&] { return told == 1; });
  CHECK(names() == "a b ");
  CHECK(cluster->synced());
  CHECK(cluster->origin() == Source::Origin::snapshot);
  CHECK(cluster->age().value() < seconds(30));
  REQUIRE(cluster->troubles().size() == 2);
  CHECK(cluster->troubles()[1].starts_with("services as an earlier process left it"));
  restart();  // what was served is kept in turn
  turn_until([&] { return told == 1; });
  CHECK(names() == "a b ");
}

TEST_CASE_FIXTURE(SnapshotFixture, "when the API server is back only what has changed changes") {
  write();
  away = true;
  restart();
  turn_until([&] { return told == 1; });
  const Object* a = cluster->store().find("Service", "shop", "a")->object.get();
  services = event_json("ADDED", object_json("a", 3)) + event_json("ADDED", object_json("c", 9));
  away = false;
  turn_until([&] { return cluster->origin() == Source::Origin::api; });
  CHECK(names() == "a c ");
  CHECK(cluster->store().find("Service", "shop", "a")->object.get() == a);
  turn_until([&] { return told >= 2; });
  CHECK(cluster->troubles().empty());
}

TEST_CASE_FIXTURE(SnapshotFixture, "that the API server is back is told even if nothing has changed") {
  write();
  away = true;
  restart();
  turn_until([&] { return told == 1; });
  auto generation = cluster->store().generation();
  away = false;
  turn_until([&] { return told == 2; });
  CHECK(cluster->origin() == Source::Origin::api);
  CHECK(cluster->store().generation() == generation);
}

TEST_CASE_FIXTURE(SnapshotFixture, "an API server that answers is believed before the snapshot") {
  write();
  services = event_json("ADDED", object_json("c", 9));
  restart();
  turn_until([&] { return told == 1; });
  CHECK(names() == "c ");
  CHECK(cluster->origin() == Source::Origin::api);
}

TEST_CASE_FIXTURE(SnapshotFixture,
                  "a kind that was read before the server went counts, the rest is the snapshot's") {
  write();
  bool hold = true;
  auto answer = server->handle;
  server->handle = [&, answer](ApiServer::Call& call) {
    if (call.has("/services")) {
      call.start(200);
      call.send(event_json("ADDED", object_json("a", 8)));  // and no more of the list
      return;
    }
    if (hold) answer(call);
  };
  restart();
  turn_until([&] { return told == 1; });
  CHECK(cluster->origin() == Source::Origin::snapshot);
  CHECK(names() == "a b ");
  CHECK(cluster->store().find("Service", "shop", "a")->object->resource_version == "8");
  CHECK(cluster->troubles().size() == 1);
}

TEST_CASE_FIXTURE(SnapshotFixture, "changes are written down, and so is what is gone") {
  write();
  restart();
  turn_until([&] { return told == 1; });
  open["services"]->send(event_json("MODIFIED", object_json("a", 60)) +
                         event_json("DELETED", object_json("b", 61)) +
                         event_json("ADDED", object_json("d", 62)));
  turn_until([&] { return names() == "a d "; });
  away = true;
  restart();
  turn_until([&] { return told == 1; });
  CHECK(names() == "a d ");
  CHECK(cluster->store().find("Service", "shop", "a")->object->resource_version == "60");
}

TEST_CASE_FIXTURE(SnapshotFixture, "every change is in the file soon, for a process that is killed") {
  services = event_json("ADDED", object_json("a", 3));
  start();
  turn_until([&] { return told == 1; });
  for (int i = 0; i < 3; ++i) {  // after a pause too
    turn_until([&, until = reactor.now() + milliseconds(20)] { return reactor.now() > until; });
    std::string name = "late" + std::to_string(i);
    open["services"]->send(event_json("ADDED", object_json(name, 60 + i)));
    turn_until([&] { return names_in(path).find(name) != std::string::npos; });
  }
}

TEST_CASE_FIXTURE(SnapshotFixture, "what is not true any more does not make the file grow without end") {
  slack = 2000;
  write();
  restart();
  turn_until([&] { return told == 1; });
  for (int i = 0; i < 200; ++i) {
    open["services"]->send(event_json("MODIFIED", object_json("a", 100 + i)));
    int before = told;
    turn_until([&] { return told > before; });
  }
  turn_until([&] { return std::filesystem::file_size(path) < 8000; });
  CHECK(cluster->snapshot_problem() == "");
  away = true;
  restart();
  turn_until([&] { return told == 1; });
  CHECK(names() == "a b ");
  CHECK(cluster->store().find("Service", "shop", "a")->object->resource_version == "299");
}

TEST_CASE_FIXTURE(SnapshotFixture, "a snapshot that would be too large is not kept, and it is said why") {
  max_size = 1000;
  services =
      event_json("ADDED", object_json("a", 3, "u", R"(,"status":{"x":")" + std::string(2000, 'x') + "\"}"));
  start();
  turn_until([&] { return told == 1; });
  turn_until([&] { return !cluster->snapshot_problem().empty(); });
  CHECK(cluster->snapshot_problem().find("larger than") != std::string::npos);
  CHECK_FALSE(std::filesystem::exists(path));
  CHECK(std::filesystem::is_empty(dir.path));
  CHECK(names() == "a ");
}

TEST_CASE_FIXTURE(SnapshotFixture,
                  "a refused snapshot is as none: nothing is known until the server is back") {
  write();
  SUBCASE("corrupted") {
    std::string bytes = read_file(path);
    bytes[bytes.size() / 2] ^= 1;
    write_file(path, bytes);
  }
  SUBCASE("cut off before it was complete") {
    write_file(path, read_file(path).substr(0, 400));
  }
  SUBCASE("of another node") {
    node = "node-2";
  }
  away = true;
  restart();
  turn_until([&] { return !cluster->snapshot_problem().empty(); });
  CHECK(cluster->snapshot_problem().find("was refused: it is") != std::string::npos);
  CHECK_FALSE(cluster->synced());
  CHECK(told == 0);
  away = false;
  turn_until([&] { return told == 1; });
  CHECK(names() == "a b ");
  CHECK(cluster->snapshot_problem() == "");
}

TEST_CASE_FIXTURE(SnapshotFixture, "no token and no field that nobody reads goes into the file") {
  services = event_json(
      "ADDED",
      object_json("a", 3, "u", R"(,"spec":{"ports":[{"port":80,"name":"n"}],"password":"hunter2"})"));
  start();
  turn_until([&] { return told == 1; });
  cluster.reset();
  std::string bytes = read_file(path);
  CHECK(bytes.find(R"("spec":{"ports":[{"port":80}]})") != std::string::npos);
  CHECK(bytes.find("hunter2") == std::string::npos);
  CHECK(bytes.find("the-token") == std::string::npos);
}

TEST_CASE("a tree that is written as JSON is read as the same tree") {
  std::string text = R"({"a":"q\"\\\u0001ü","b":[1,-2.5e3,true,null,{}],"c":{"d":[[]]}})";
  auto tree = parse_json(text);
  REQUIRE(tree);
  std::string out;
  write_json(*tree, {}, out);
  auto again = parse_json(out);
  REQUIRE(again);
  CHECK(*again == *tree);
}

#include <doctest/doctest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <functional>

#include "kube/folder.h"

namespace fs = std::filesystem;
using namespace nodemesh;
using namespace nodemesh::kube;

namespace {

const Kind kKinds[] = {{"", "Thing", {"v1"}, false, [](const Object&, Fields& fields, Problems&) {
                          fields.ignore({"spec"});
                          return std::make_shared<const Decoded>();
                        }}};

std::string thing(const std::string& name) {
  return "---\napiVersion: v1\nkind: Thing\nmetadata: {name: " + name + "}\n";
}

struct Fixture {
  fs::path dir;
  io::Reactor reactor;
  Store store{kKinds};
  int changes = 0;
  Folder folder;

  Fixture() : dir(make_dir()), folder(reactor, dir / "config", store, [this] { ++changes; }) {
    fs::create_directory(dir / "config");
  }
  ~Fixture() { fs::remove_all(dir); }

  static fs::path make_dir() {
    char name[] = "/tmp/nodemesh-folder-XXXXXX";
    return ::mkdtemp(name);
  }
  void write(const std::string& name, const std::string& text) {
    std::ofstream(dir / "config" / name) << text;
  }
  bool has(const std::string& name) const { return store.find("Thing", "", name) != nullptr; }
  bool wait_for(const std::function<bool()>& condition) {
    auto deadline = Monotonic::now() + seconds(10);
    while (!condition() && Monotonic::now() < deadline) reactor.run_once(milliseconds(20));
    return condition();
  }
};

}  // namespace

TEST_CASE_FIXTURE(Fixture, "a missing folder fails the start with one sentence") {
  fs::remove_all(dir / "config");
  auto started = folder.start();
  REQUIRE_FALSE(started);
  CHECK(started.error().message ==
        "the config folder " + (dir / "config").string() + " does not exist; create it or correct --config");
}

TEST_CASE_FIXTURE(Fixture, "a file in place of the folder fails the start") {
  fs::remove_all(dir / "config");
  std::ofstream(dir / "config") << "x";
  auto started = folder.start();
  REQUIRE_FALSE(started);
  CHECK(started.error().message.find("is not a folder") != std::string::npos);
}

TEST_CASE_FIXTURE(Fixture, "the start reads yaml, yml and json and nothing else") {
  write("a.yaml", thing("a"));
  write("b.yml", thing("b"));
  write("c.json", R"({"apiVersion":"v1","kind":"Thing","metadata":{"name":"c"}})");
  write("d.txt", thing("d"));
  write(".e.yaml", thing("e"));
  REQUIRE(folder.start());
  CHECK(store.size() == 3);
  CHECK(changes == 0);
}

TEST_CASE_FIXTURE(Fixture, "writes, renames and removals are followed") {
  REQUIRE(folder.start());
  write("a.yaml", thing("a"));
  CHECK(wait_for([&] { return has("a"); }));
  write("a.yaml", thing("a2"));
  CHECK(wait_for([&] { return has("a2") && !has("a"); }));
  write("tmp", thing("b"));
  fs::rename(dir / "config/tmp", dir / "config/a.yaml");
  CHECK(wait_for([&] { return has("b") && !has("a2"); }));
  fs::rename(dir / "config/a.yaml", dir / "config/c.yaml");
  CHECK(wait_for([&] { return store.statuses().size() == 1 && store.statuses()[0].file == "c.yaml"; }));
  fs::remove(dir / "config/c.yaml");
  CHECK(wait_for([&] { return store.size() == 0; }));
}

TEST_CASE_FIXTURE(Fixture, "a burst of writes is one change") {
  REQUIRE(folder.start());
  for (int i = 0; i < 20; ++i) write("f" + std::to_string(i) + ".yaml", thing("t" + std::to_string(i)));
  CHECK(wait_for([&] { return store.size() == 20; }));
  CHECK(changes == 1);
}

TEST_CASE_FIXTURE(Fixture, "a file that is still being written is not read") {
  REQUIRE(folder.start());
  std::ofstream slow(dir / "config/slow.yaml");
  slow << thing("half") << std::flush;
  write("other.yaml", thing("other"));
  CHECK(wait_for([&] { return has("other"); }));
  CHECK_FALSE(has("half"));
  slow.close();
  CHECK(wait_for([&] { return has("half"); }));
}

TEST_CASE_FIXTURE(Fixture, "a file that is rewritten in place keeps its last version until it is closed") {
  write("a.yaml", thing("first") + thing("deny"));
  REQUIRE(folder.start());
  for (int round = 0; round < 5; ++round) {
    CAPTURE(round);
    auto n = std::to_string(round);
    write("a.yaml", thing("first") + thing("deny"));  // its settling falls into the next write
    std::ofstream slow(dir / "config/a.yaml", std::ios::trunc);
    write("x" + n + ".yaml", thing("x" + n));
    REQUIRE(wait_for([&] { return has("x" + n); }));
    CHECK(has("deny"));
    slow << thing("first") << std::flush;
    fs::permissions(dir / "config/a.yaml", fs::perms::owner_read | fs::perms::owner_write);
    write("y" + n + ".yaml", thing("y" + n));
    REQUIRE(wait_for([&] { return has("y" + n); }));
    CHECK(has("deny"));
    slow << thing("deny") << thing("last" + n);
    slow.close();
    CHECK(wait_for([&] { return has("last" + n) && has("deny"); }));
  }
}

TEST_CASE_FIXTURE(Fixture, "reading the whole folder again leaves out what is being written") {
  write("a.yaml", thing("deny"));
  REQUIRE(folder.start());
  std::ofstream slow(dir / "config/a.yaml", std::ios::trunc);
  fs::create_directory_symlink(".", dir / "config/..data");
  write("other.yaml", thing("other"));
  REQUIRE(wait_for([&] { return has("other"); }));
  CHECK(has("deny"));
  fs::remove(dir / "config/..data");
  write("more.yaml", thing("more"));
  REQUIRE(wait_for([&] { return has("more"); }));
  CHECK(has("deny"));
  slow << thing("last");
  slow.close();
  CHECK(wait_for([&] { return has("last") && !has("deny"); }));
}

TEST_CASE_FIXTURE(Fixture,
                  "a file whose writer closes it empty, or that is replaced or removed, is followed") {
  for (auto name : {"a", "b", "c"}) write(std::string(name) + ".yaml", thing(name));
  REQUIRE(folder.start());
  write("a.yaml", "");
  CHECK(wait_for([&] { return !has("a"); }));
  std::ofstream b(dir / "config/b.yaml", std::ios::trunc), c(dir / "config/c.yaml", std::ios::trunc);
  write("tmp", thing("b2"));
  fs::rename(dir / "config/tmp", dir / "config/b.yaml");
  fs::remove(dir / "config/c.yaml");
  b << thing("late") << std::flush;  // into the file that was replaced
  CHECK(wait_for([&] { return has("b2") && !has("b") && !has("c"); }));
}

TEST_CASE_FIXTURE(Fixture, "the symlink swap of a mounted ConfigMap is followed") {
  auto config = dir / "config";
  for (auto version : {"..v1", "..v2"}) {
    fs::create_directory(config / version);
    std::ofstream(config / version / "m.yaml") << thing(version + 2);
  }
  fs::create_directory_symlink("..v1", config / "..data");
  fs::create_symlink("..data/m.yaml", config / "m.yaml");
  REQUIRE(folder.start());
  CHECK(has("v1"));
  fs::create_directory_symlink("..v2", config / "..data_tmp");
  fs::rename(config / "..data_tmp", config / "..data");
  CHECK(wait_for([&] { return has("v2") && !has("v1"); }));
}

TEST_CASE_FIXTURE(
    Fixture, "a folder that goes away leaves everything in force and is taken up again when it is back") {
  write("a.yaml", thing("a"));
  REQUIRE(folder.start());
  fs::rename(dir / "config", dir / "gone");
  CHECK(wait_for([&] { return !folder.watching(); }));
  CHECK(has("a"));
  fs::create_directory(dir / "config");
  write("b.yaml", thing("b"));
  CHECK(wait_for([&] { return has("b"); }));
  CHECK_FALSE(has("a"));
  write("c.yaml", thing("c"));
  CHECK(wait_for([&] { return has("c"); }));
}

TEST_CASE_FIXTURE(Fixture, "what is not a readable regular file is a status, not a failure") {
  REQUIRE(::mkfifo((dir / "config/fifo.yaml").c_str(), 0600) == 0);
  fs::create_directory(dir / "config/dir.yaml");
  write("good.yaml", thing("good"));
  REQUIRE(folder.start());
  CHECK(has("good"));
  size_t refused = 0;
  for (const auto& status : store.statuses()) refused += status.state == Status::State::refused;
  CHECK(refused == 2);
}

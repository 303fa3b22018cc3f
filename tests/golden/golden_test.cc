// Manifests in, snapshot and statuses out. A case is a folder cases/<name>/ with in/*.yaml and the expected
// snapshot.json and status.json; UPDATE_GOLDEN=1 rewrites them (read the difference before committing it).
// Where a case also has in2/, that is a later state of the same folder: its expectation is snapshot2.json and
// status2.json. A file `cluster` says that the folder stands for what an agent on Kubernetes sees: the Pods
// of node1 alone, and WorkloadSlices.
#include <doctest/doctest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>
#include <string>

#include "kube/store.h"
#include "translate/dump.h"
#include "translate/translate.h"

namespace fs = std::filesystem;
using namespace nodemesh;

namespace {

std::string read(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream text;
  text << in.rdbuf();
  return text.str();
}

std::set<fs::path> sorted(const fs::path& dir) {
  std::set<fs::path> paths;
  for (const auto& entry : fs::directory_iterator(dir)) paths.insert(entry.path());
  return paths;
}

void load(kube::Store& store, const fs::path& dir, std::set<std::string>& files) {
  std::set<std::string> now;
  for (const auto& path : sorted(dir)) {
    store.set_file(path.filename(), kube::parse_manifest(read(path), path.filename()));
    now.insert(path.filename());
  }
  for (const auto& file : files) {
    if (!now.contains(file)) store.remove_file(file);
  }
  files = now;
}

void compare(const fs::path& path, const nlohmann::json& actual) {
  auto text = actual.dump(2) + "\n";
  if (std::getenv("UPDATE_GOLDEN")) {
    std::ofstream(path) << text;
    return;
  }
  INFO("expected: ", path.string(), " (UPDATE_GOLDEN=1 rewrites it)");
  REQUIRE_MESSAGE(fs::exists(path), "no such file: ", path.string());
  auto expected = nlohmann::json::parse(read(path));
  bool same = expected == actual;
  CHECK_MESSAGE(same, "difference: ", nlohmann::json::diff(expected, actual).dump(1));
}

}  // namespace

TEST_CASE("every case folder translates to the snapshot and the statuses beside it") {
  auto cases = fs::path(__FILE__).parent_path() / "cases";
  size_t count = 0;
  for (const auto& dir : sorted(cases)) {
    SUBCASE(dir.filename().c_str()) {
      kube::Store store(translate::kinds());
      std::set<std::string> files;
      translate::TranslateOptions options{.node = "node1", .cluster = fs::exists(dir / "cluster")};
      load(store, dir / "in", files);
      auto first = translate::translate(store, nullptr, options);
      compare(dir / "snapshot.json", translate::to_json(*first.snapshot));
      compare(dir / "status.json", translate::to_json(first.statuses));
      if (fs::exists(dir / "in2")) {
        load(store, dir / "in2", files);
        auto second = translate::translate(store, first.snapshot, options);
        compare(dir / "snapshot2.json", translate::to_json(*second.snapshot));
        compare(dir / "status2.json", translate::to_json(second.statuses));
      }
    }
    ++count;
  }
  CHECK(count >= 25);
}

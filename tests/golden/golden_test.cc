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

#include "kube/json.h"
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

// The objects of a folder as an API server's, whole or as far as a snapshot on disk keeps them.
void load_as_api(kube::Store& store, const fs::path& dir, bool kept_only) {
  int version = 0;
  for (const auto& path : sorted(dir)) {
    for (const auto& object : kube::parse_manifest(read(path), path.filename()).objects) {
      std::span<const std::string_view> fields;
      for (const auto& kind : translate::kinds()) {
        if (kept_only && kind.name == object->key.kind && kind.group == object->key.group)
          fields = kind.fields;
      }
      std::string text;
      kube::write_json(object->root, fields, text);
      auto tree = kube::parse_json(text);
      if (!tree) continue;  // YAML has numbers that JSON has not
      std::string api_version =
          object->key.group.empty() ? object->version : object->key.group + "/" + object->version;
      auto again = kube::make_api_object(std::move(*tree), object->key.kind, api_version);
      again->resource_version = std::to_string(++version);
      store.upsert(std::move(again));
    }
  }
}

}  // namespace

TEST_CASE("what a snapshot on disk keeps of every case's objects translates to the same") {
  for (const auto& dir : sorted(fs::path(__FILE__).parent_path() / "cases")) {
    INFO(dir.filename().string());
    translate::TranslateOptions options{.node = "node1", .cluster = fs::exists(dir / "cluster")};
    kube::Store whole(translate::kinds()), kept(translate::kinds());
    load_as_api(whole, dir / "in", false);
    load_as_api(kept, dir / "in", true);
    CHECK(whole.size() == kept.size());
    auto expected = translate::to_json(*translate::translate(whole, nullptr, options).snapshot);
    auto actual = translate::to_json(*translate::translate(kept, nullptr, options).snapshot);
    bool same = expected == actual;
    CHECK_MESSAGE(same, "difference: ", nlohmann::json::diff(expected, actual).dump(1));
  }
}

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

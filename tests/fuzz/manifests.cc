// Fuzzes the configuration path end to end: any bytes as a manifest file, then as its next version, must
// neither crash nor throw nor hang, and what comes out must be writable as JSON.
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string_view>

#include "model/authorize.h"
#include "translate/dump.h"
#include "translate/status.h"
#include "translate/translate.h"

using namespace nodemesh;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::string_view text(reinterpret_cast<const char*>(data), size);
  kube::Store store(translate::kinds());
  translate::Translation last;
  // The first half alone is an earlier version of the same file.
  for (auto version : {text.substr(0, size / 2), text}) {
    store.set_file("fuzz.yaml", kube::parse_manifest(version, "fuzz.yaml"));
    auto next = translate::translate(store, last.snapshot, {.node = "node1", .cluster = size % 2 == 1});
    translate::new_problems(last.statuses, next.statuses);
    last = std::move(next);
  }
  for (const auto& workload : last.snapshot->workloads()) {
    if (!workload->policy) continue;
    auto verdict = model::authorize(
        *workload->policy, {.identity = model::PeerIdentity::parse(workload->identity), .mtls = true});
    (void)translate::to_json(verdict).dump();
  }
  (void)translate::to_json(*last.snapshot).dump();
  (void)translate::to_json(last.statuses).dump();
  return 0;
}

// The reader of what an agent has kept of its API server. The checksums are made good first, or nothing
// behind them would ever be reached.
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <string>

#include "kube/json.h"
#include "kube/snapshot_file.h"

namespace {

using namespace nodemesh::kube;

void read_all(const std::string& path) {
  auto reader = SnapshotReader::open(path, 64 << 20);
  if (!reader) return;
  for (;;) {
    auto frame = reader->next();
    if (!frame || !*frame) return;
    for (auto payload = **frame; !payload.empty();) {
      auto record = take_record(payload);
      if (!record) break;
      (void)parse_json(record->body, 10'000);
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const std::string kPath = "/tmp/fuzz-snapshot-" + std::to_string(::getpid());
  std::string_view input(reinterpret_cast<const char*>(data), size);
  (void)SnapshotHeader::parse(input);
  auto writer = SnapshotWriter::create(kPath, {.node = "n"});
  if (writer && writer->append({}, input)) read_all(kPath);
  if (std::FILE* out = std::fopen(kPath.c_str(), "wb")) {
    std::fwrite(data, 1, size, out);
    std::fclose(out);
    read_all(kPath);
  }
  ::unlink(kPath.c_str());
  return 0;
}

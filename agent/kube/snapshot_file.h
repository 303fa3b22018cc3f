// The file in which an agent keeps what it has read of an API server, for a start while that is away: a
// journal, so that no object's text is kept in memory. Its reader trusts nothing that it finds: a file that
// is not ours alone, of another format, or changed in one bit is refused whole. One that was cut off within
// its last frame, as by a process killed while it wrote, is read up to there: that is a state that was in
// force a moment earlier. No fsync: what a process wrote outlives it, and after a power failure kubelet
// starts no pod before the API server has named it. One thread owns a reader or writer.
//
// Layout, little-endian: a line that names the format, then frames
//   {u32 length, u32 its complement, i64 as_of, u8[length] payload, SHA-256 of the digest before and all
//   this}.
// The first frame's payload is the header, as JSON; the others' are records
//   {u8 type, five times {u16 length, bytes}: group, kind, namespace, name, version; u32 length, body}.
// What follows a `complete` record is a complete state of all kinds after each frame.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/fd.h"
#include "base/reason.h"

namespace nodemesh::kube {

// Whom the objects are for, and where they are from.
struct SnapshotHeader {
  std::string node;
  // SHA-256 of the API server's roots, or its address where none are given. While authorities are exchanged a
  // bundle holds two: the same server has one in common.
  std::vector<std::string> server;
  std::vector<std::string> kinds;  // resources that are complete in it, "pods", "workloadslices.nodemesh.dev"
  std::string root_namespace;      // of the one ConfigMap

  bool operator==(const SnapshotHeader&) const = default;
  std::string to_json() const;
  static Result<SnapshotHeader> parse(std::string_view json);
};
// Why the objects of `found` are not for `wanted`; nothing when they are.
Result<> check_header(const SnapshotHeader& found, const SnapshotHeader& wanted);

struct SnapshotRecord {
  enum class Type : uint8_t { upsert = 1, remove = 2, complete = 3 };
  Type type = Type::upsert;
  // `version` is the object's resourceVersion; the last two are empty but for upserts.
  std::string_view group, kind, ns, name, version, body;

  bool operator==(const SnapshotRecord&) const = default;
};
// False, and nothing appended, when a part is longer than the format holds.
bool append_record(std::string& payload, const SnapshotRecord& record);
// The next record of `payload`, which is shortened by it; views into it. Fails when it is no record.
Result<SnapshotRecord> take_record(std::string_view& payload);

using SnapshotDigest = std::array<uint8_t, 32>;
constexpr size_t kMaxSnapshotFrame = 16 << 20;

// Makes the file `path` (mode 0600), in place of what is there.
class SnapshotWriter {
 public:
  static Result<SnapshotWriter> create(const std::string& path, const SnapshotHeader& header);
  // At most kMaxSnapshotFrame. After a failure the file may end within a frame, and nothing more is written.
  Result<> append(WallClock::time_point as_of, std::string_view payload);
  uint64_t size() const { return size_; }

 private:
  Fd fd_;
  SnapshotDigest digest_{};
  uint64_t size_ = 0;
  bool failed_ = false;
};

class SnapshotReader {
 public:
  // Fails when there is no file (Reason::NONE), or one that is refused as said above.
  static Result<SnapshotReader> open(const std::string& path, uint64_t max_size);
  const SnapshotHeader& header() const { return header_; }
  // When the objects were last known to be current, as of the frames read.
  WallClock::time_point as_of() const { return as_of_; }
  // The next frame's payload, valid until the next call; nothing at the end. A file that is still written to
  // may have more later.
  Result<std::optional<std::string_view>> next();
  bool cut() const { return cut_; }  // the end was not the end of a frame
  void rewind();                     // to behind the header

 private:
  Result<std::optional<std::string_view>> frame();
  Result<size_t> read(char* to, size_t size);

  Fd fd_;
  SnapshotHeader header_;
  SnapshotDigest digest_{}, first_digest_{};
  uint64_t at_ = 0, first_ = 0;
  WallClock::time_point as_of_{};
  std::string bytes_;
  bool cut_ = false;
};

}  // namespace nodemesh::kube

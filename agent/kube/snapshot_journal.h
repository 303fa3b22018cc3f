// Writes down what a Cluster reads, for the start of an agent whose API server is away (snapshot_file.h). A
// new journal grows beside the file of the process before and takes its place when it is complete. Then
// changes are appended, those of some seconds together; once the file is twice as large as what is still
// true of it, it is copied without the rest, a piece in each turn of the reactor. When it cannot be written,
// or would be too large, it is removed and `problem` says why, for an old state that looks like the last one
// would be worse than none. Lives on the reactor's thread.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <string_view>

#include "io/reactor.h"
#include "kube/objects.h"
#include "kube/snapshot_file.h"

namespace nodemesh::kube {

struct JournalOptions {
  std::string path;
  uint64_t max_size = 256 << 20;  // bytes; while it is copied the file may have twice as many, and its copy
  milliseconds flush{2'000};      // between writes
  seconds tell_time{30};          // between writes that say only that all is still so
  uint64_t slack = 4 << 20;       // bytes that may be untrue before the file is copied
};

class SnapshotJournal {
 public:
  // Whether an object is still as this version says.
  using IsCurrent = std::move_only_function<bool(const SnapshotRecord& record)>;
  // When everything was last known to be current.
  using AsOf = std::move_only_function<WallClock::time_point()>;

  SnapshotJournal(io::Reactor& reactor, JournalOptions options, SnapshotHeader header, IsCurrent is_current,
                  AsOf as_of);
  ~SnapshotJournal();
  SnapshotJournal(const SnapshotJournal&) = delete;
  SnapshotJournal& operator=(const SnapshotJournal&) = delete;

  // `json` is the object's text, as far as it is to be kept.
  void upsert(const Object& object, std::string_view json);
  void remove(const ObjectKey& key);
  // Everything has been told: from now on the file is good. Tell it again, with `current`, when what the API
  // server has now has been told: if that could not be written, the file of the process before goes too.
  void complete(bool current);
  void flush();
  const std::string& problem() const { return problem_; }

 private:
  struct Copy {
    SnapshotReader from;
    SnapshotWriter to;
    std::string kept;
    bool last = false;  // the file has ended once; nothing is left but what comes meanwhile
  };

  void add(const SnapshotRecord& record);
  void tick();
  void begin_copy();
  void go_on_copying();
  Result<bool> copy_piece();
  Result<> keep(std::string_view payload);
  Result<> end_copy();
  void give_up(const std::string& why);
  std::string new_path() const { return options_.path + ".new"; }
  std::string copy_path() const { return options_.path + ".copy"; }

  io::Reactor& reactor_;
  const JournalOptions options_;
  const SnapshotHeader header_;
  IsCurrent is_current_;
  AsOf as_of_;
  std::optional<SnapshotWriter> file_;
  std::optional<Copy> copy_;
  std::string waiting_;  // records that are not written yet
  std::string problem_;
  bool complete_ = false;
  uint64_t copied_size_ = 0;  // of the file when it had nothing untrue
  Monotonic::time_point told_{};
  io::Timer timer_;
  io::Timer copy_timer_;
};

}  // namespace nodemesh::kube

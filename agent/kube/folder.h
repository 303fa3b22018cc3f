// Keeps a Store equal to a folder of manifests: reads *.yaml, *.yml and *.json at the start and watches them
// with inotify, so that editors, atomic renames and the `..data` symlink swap of mounted ConfigMaps are all
// seen, 50 ms after the last event. A file that was modified and not yet closed is not read: what was last
// read from it stays in force until its writer closes it. Not recursive. If the folder goes away, what was
// read stays in force until it is back. Lives on the reactor's thread.
#pragma once

#include <functional>
#include <map>
#include <set>
#include <string>

#include "base/fd.h"
#include "base/reason.h"
#include "io/reactor.h"
#include "kube/store.h"

namespace nodemesh::kube {

class Folder final : private io::EventHandler {
 public:
  // All borrowed. `changed` runs on the reactor after the store has changed; it may not destroy the folder.
  Folder(io::Reactor& reactor, std::string path, Store& store, std::move_only_function<void()> changed);
  ~Folder();

  // Reads everything and starts watching; does not call `changed`. Fails with one sentence when there is no
  // such folder or it cannot be read. Files that cannot be read are statuses in the store, not failures.
  Result<> start();
  const std::string& path() const { return path_; }
  // False while the folder is missing.
  bool watching() const { return watching_; }

 private:
  struct Writing {
    Monotonic::time_point since;
    bool reported = false;
  };

  void on_events(uint32_t events) override;
  Result<> watch();
  void drain_events();
  void note(const std::string& name, uint32_t mask);
  void arm_settle();
  void settle();
  void report_stalled();
  bool read_first();
  bool reload_all();
  bool reload(const std::string& name);
  void lost();
  void retry();

  io::Reactor& reactor_;
  std::string path_;
  Store& store_;
  std::move_only_function<void()> changed_;
  Fd inotify_;
  int watch_ = -1;
  bool watching_ = false;
  bool all_dirty_ = false;
  std::set<std::string> dirty_;  // names in the folder
  Monotonic::time_point dirty_since_{};
  std::map<std::string, Writing> writing_;  // names that were modified and not closed since
  std::set<std::string> known_;             // names that the store has
  io::Timer settle_timer_;
  io::Timer stall_timer_;
  io::Timer retry_timer_;
};

}  // namespace nodemesh::kube

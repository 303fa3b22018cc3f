// Writes a .tar.gz of plain files (POSIX.1-2001 ustar, RFC 1952). Readable by its owner only. One thread.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include <zlib.h>

#include "base/clock.h"
#include "base/reason.h"

namespace nodemesh::ctl {

class Archive {
 public:
  // Replaces a file that is there; what is a link, or belongs to others in a folder for all, is left alone.
  static Result<Archive> create(const std::string& path, WallClock::time_point now);
  // Whether a file may be called so: relative, without "..", of printable ASCII, of at most 150 bytes before
  // its last slash and 99 after it.
  static bool can_hold(std::string_view name);
  Result<> add(const std::string& name, std::string_view bytes);
  // The file is complete only after this.
  Result<> finish();

 private:
  struct Close {
    void operator()(gzFile file) const { gzclose(file); }
  };
  using File = std::unique_ptr<gzFile_s, Close>;
  Archive(File file, int64_t time) : file_(std::move(file)), time_(time) {}
  Result<> write(std::string_view bytes);

  File file_;
  int64_t time_;
};

}  // namespace nodemesh::ctl

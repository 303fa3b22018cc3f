// The directory that holds the authority's key: opened, locked against a second process, and its one file
// read and written with the modes that a private key needs. Start-up only.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "base/fd.h"
#include "base/reason.h"

namespace nodemesh::controller {

// Makes the directory (0700) if its parent exists; refuses one that belongs to another user or that others
// may enter.
Result<Fd> open_state_dir(const std::string& path);
// nullopt: there is no such file. Refuses a file that is not regular, not ours, or that others may read.
Result<std::optional<std::string>> read_secret(const Fd& directory, const std::string& path,
                                               const std::string& name);
// 0600, complete or not at all, on disk when it returns.
Result<> write_secret(const Fd& directory, const std::string& path, const std::string& name,
                      std::string_view bytes);

}  // namespace nodemesh::controller

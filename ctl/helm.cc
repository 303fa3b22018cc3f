#include "ctl/helm.h"

#include <spawn.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "base/fd.h"

extern char** environ;

namespace nodemesh::ctl {
namespace {

// What the child reads: a file in memory, so that nobody has to write while it runs.
Result<Fd> in_memory(std::string_view text) {
  Fd file(::memfd_create("values", MFD_CLOEXEC));
  bool written = file && ::write(file.get(), text.data(), text.size()) == static_cast<ssize_t>(text.size()) &&
                 ::lseek(file.get(), 0, SEEK_SET) == 0;
  if (!written) return fail(std::string("memfd_create: ") + std::strerror(errno));
  return file;
}

}  // namespace

std::string find_program(const std::string& wanted) {
  if (wanted.find('/') != wanted.npos) return ::access(wanted.c_str(), X_OK) == 0 ? wanted : "";
  const char* path = std::getenv("PATH");
  std::string_view rest = path == nullptr ? "" : path;
  while (!rest.empty()) {
    auto end = std::min(rest.find(':'), rest.size());
    auto candidate = std::string(rest.substr(0, end)) + "/" + wanted;
    if (end > 0 && ::access(candidate.c_str(), X_OK) == 0) return candidate;
    rest.remove_prefix(std::min(end + 1, rest.size()));
  }
  return "";
}

Result<int> run_program(const std::string& path, const std::vector<std::string>& words,
                        std::string_view input) {
  auto file = in_memory(input);
  if (!file) return std::unexpected(file.error());
  std::vector<char*> argv{const_cast<char*>(path.c_str())};
  for (const auto& word : words) argv.push_back(const_cast<char*>(word.c_str()));
  argv.push_back(nullptr);
  posix_spawn_file_actions_t actions;
  ::posix_spawn_file_actions_init(&actions);
  ::posix_spawn_file_actions_adddup2(&actions, file->get(), STDIN_FILENO);
  pid_t child = 0;
  int error = ::posix_spawn(&child, path.c_str(), &actions, nullptr, argv.data(), environ);
  ::posix_spawn_file_actions_destroy(&actions);
  if (error != 0) return fail(path + ": " + std::strerror(error));
  int status = 0;
  while (::waitpid(child, &status, 0) < 0) {
    if (errno != EINTR) return fail(path + ": waitpid: " + std::strerror(errno));
  }
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

}  // namespace nodemesh::ctl

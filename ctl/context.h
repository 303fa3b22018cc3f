// What every meshctl command gets: the global flags, where to write, and the exit codes. One thread; plain
// values.
#pragma once

#include <iosfwd>
#include <string>
#include <string_view>
#include <vector>

#include "base/reason.h"

namespace nodemesh::ctl {

// Documented in `meshctl --help`; scripts rely on them.
enum Exit : int {
  kOk = 0,
  kFailure = 1,
  kUsage = 2,
  kWarnings = 3,     // only with --strict
  kUnreachable = 4,  // no agent, or no API server, answered
};

enum class Format { table, wide, json, yaml };

struct Context {
  std::ostream& out;
  std::ostream& err;
  bool colour = false;
  std::string program = "meshctl";  // as the user calls it, for hints: "kubectl mesh" as kubectl's plugin

  Format format = Format::table;
  std::vector<std::string> nodes;  // empty: all that are found
  std::string run_dir = "/run/nodemesh";
  bool run_dir_given = false;          // by the user, so no cluster is meant
  std::string admin;                   // "unix:/path" or "host:port"; instead of looking in run_dir
  std::string kubeconfig;              // empty: $KUBECONFIG, else ~/.kube/config
  std::string kube_context;            // empty: the kubeconfig's current one
  std::string ns = "nodemesh-system";  // where nodemesh is installed
  bool strict = false;
  int warnings = 0;
  std::string last_progress;

  // "error: what: why" and, on a line of its own, what to do next.
  int failed(Exit code, std::string_view what_and_why, std::string_view next) const;
  void warn(std::string_view text);
  // What a command waits for, on the error output; said once until it changes.
  void progress(const std::string& text);
  // kOk, or kWarnings with --strict if there were any.
  int finish() const { return strict && warnings ? kWarnings : kOk; }
};

// "`meshctl x`" in a hint as the user has to type it.
std::string as_called(std::string_view hint, std::string_view program);

// Control characters and what is not ASCII become \xNN: names may come from a peer and must not reach a
// terminal raw.
std::string printable(std::string_view text);

}  // namespace nodemesh::ctl

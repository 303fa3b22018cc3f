// The commands of meshctl, one file each. They return an exit code (context.h); everything to be told has
// been told.
#pragma once

#include <iosfwd>
#include <string>

#include "ctl/context.h"

namespace CLI {
class App;
}

namespace nodemesh::ctl {

int get(Context& context, const std::string& kind);
int status(Context& context);
int log_get(Context& context);
// `duration` "" keeps the level until it is changed again.
int log_set(Context& context, const std::string& component, const std::string& level,
            const std::string& duration);
int version(Context& context, bool client_only);
// Looks at the cluster, before an installation (`pre`) or after it, and says what is wrong and what to do.
// `explain`: one check's id, or "all" for docs/checks.md, and nothing is looked at.
int check(Context& context, bool pre, const std::string& explain);
// Asks every address of every URL (http://HOST:PORT/PATH) until all answer 200, at most `wait_seconds`. For
// `helm test`, whose image has no other program.
int ready(Context& context, const std::vector<std::string>& urls, int wait_seconds);
// A script for bash, zsh or fish that asks this program for the candidates.
int completion(Context& context, const std::string& shell);
// The candidates for the last of `words`, one a line.
int complete(Context& context, const CLI::App& app, const std::vector<std::string>& words);
// Starts warden and proxy of one node; takes over the process.
int node_run(int argc, char** argv);

// The whole program: parses, runs, returns the exit code.
int run(int argc, const char* const* argv, std::ostream& out, std::ostream& err, bool colour);

}  // namespace nodemesh::ctl

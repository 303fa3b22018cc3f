// Which agents a command talks to, and asking all of them.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

#include "ctl/context.h"

namespace nodemesh::ctl {

struct Target {
  std::string name;     // the node, or the address given with --admin
  std::string address;  // for http()
};

// From --admin, --node and what lies under the run directory (<run-dir>/<node>/admin.sock), by name.
std::vector<Target> find_targets(const Context& context);

// One agent's answer. `node` is the agent's own word for itself where it gives one.
struct Answer {
  std::string node;
  nlohmann::json body;
};

struct Answers {
  std::vector<Answer> list;
  int exit = kOk;  // not kOk: nothing to show, and it has been said why
};

// Asks every target. Those that do not answer are warnings while another one does; none at all is
// kUnreachable, and so is a node named by --node.
Answers ask(Context& context, std::string_view method, std::string_view path);

}  // namespace nodemesh::ctl

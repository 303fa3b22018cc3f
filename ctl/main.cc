// meshctl: the command line of nodemesh.
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <iostream>
#include <string_view>

#include "ctl/commands.h"

int main(int argc, char** argv) {
#ifdef NODEMESH_NODE_RUN
  if (argc > 2 && std::string_view(argv[1]) == "node" && std::string_view(argv[2]) == "run") {
    return nodemesh::ctl::node_run(argc - 2, argv + 2);
  }
#endif
  ::signal(SIGPIPE, SIG_IGN);  // a connection that broke is an error of its write, OpenSSL's too
  const char* no_color = std::getenv("NO_COLOR");
  bool colour = ::isatty(STDOUT_FILENO) && (!no_color || !*no_color);
  return nodemesh::ctl::run(argc, argv, std::cout, std::cerr, colour);
}

#include "app/node_run.h"

#include "ctl/commands.h"

namespace nodemesh::ctl {

int node_run(int argc, char** argv) {
  return app::node_run_main(argc, argv);
}

}  // namespace nodemesh::ctl

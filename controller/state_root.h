// The root of a standalone mesh: one file with key and certificate in a state directory that only its owner
// may read, made at the first start. Start-up only; the directory stays locked while the value lives.
#pragma once

#include <memory>
#include <string>

#include "base/clock.h"
#include "base/fd.h"
#include "base/reason.h"
#include "controller/signer.h"

namespace nodemesh::controller {

struct StateRoot {
  struct Settings {
    std::string state_dir;
    std::string trust_domain = "cluster.local";
    seconds root_lifetime{3650LL * 24 * 3600};
  };
  Fd lock;
  std::shared_ptr<const Signer> signer;

  // Reads the root, or makes one where the directory is empty. Refuses, in one sentence that names the fix: a
  // state directory or file that others may read, a second process on it, a key and certificate that do not
  // fit, an expired root.
  static Result<StateRoot> open(const Settings& settings, WallClock::time_point now);
};

}  // namespace nodemesh::controller

// What is known of addresses that no workload has: plaintext needs positive evidence that nobody in the mesh
// is there. Immutable values, part of a snapshot; any thread.
#pragma once

#include <cstdint>
#include <vector>

#include "base/addr.h"

namespace nodemesh::model {

// What becomes of a peer of whom nothing is known in time (value unknownPeer).
enum class UnknownPeer : uint8_t {
  hold,       // the connection fails with PEER_UNKNOWN
  plaintext,  // it goes on in plaintext, as if there were no mesh
};

struct PeerRules {
  // Whatever has no workload is outside of the mesh, as in a folder, which names everybody.
  bool everyone_known = true;
  UnknownPeer unknown = UnknownPeer::hold;
  std::vector<Cidr> services;        // a VIP of which no Service is known yet is unknown
  std::vector<Cidr> plain_ranges;    // of nodes that are known to have no pod in the mesh
  std::vector<Addr> node_addresses;  // host networks, never in the mesh; sorted

  bool operator==(const PeerRules&) const = default;
};

}  // namespace nodemesh::model

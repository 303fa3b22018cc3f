// Conditions as the controller writes them into the status of others' objects: what to say of an object, and
// how it stands beside the conditions that others have written. Values; any thread.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "controller/api.h"
#include "kube/node.h"
#include "kube/problem.h"

namespace nodemesh::controller {

// metav1.Condition without its type and time.
struct Condition {
  bool holds = false;  // status True
  std::string reason;  // CamelCase
  std::string message;
  int64_t observed_generation = 0;  // 0: none

  bool operator==(const Condition&) const = default;
};

// Of PeerAuthentications, AuthorizationPolicies and DestinationRules. Ours alone: Istio's are Istio's to
// write.
inline constexpr std::string_view kAccepted = "nodemesh.dev/Accepted";

// True/Accepted, True/AcceptedWithWarnings or False/Refused; the message names field, problem and fix, and is
// at most 4 KiB.
Condition accepted_condition(const kube::Status& status, int64_t generation);

// The condition of this type in status.conditions of an object; nullopt when it has none.
std::optional<Condition> read_condition(const kube::Node& object, std::string_view type);
std::optional<Condition> read_condition(const Json& object, std::string_view type);

// One condition as JSON. `since`: when its status last changed.
Json condition_json(std::string_view type, const Condition& condition, const std::string& since);
// All conditions of `object`, with ours in its place or at the end. lastTransitionTime moves only with the
// status.
Json conditions_with(const Json& object, std::string_view type, const Condition& condition,
                     const std::string& now);

}  // namespace nodemesh::controller

#include "translate/claims.h"

namespace nodemesh::translate {

bool Claims::take(const std::string& what, const kube::Object& object, const std::string& field) {
  auto [owner, fresh] = owners_.try_emplace(what, Owner{&object, field});
  if (fresh || owner->second.object == &object) return true;
  const auto& first = *owner->second.object;
  reports_.add(
      first, kube::Severity::warning, owner->second.field,
      "the " + what + " is also claimed by " + object.origin().to_string() + "; this object keeps it",
      "give one of the two another one");
  reports_.add(
      object, kube::Severity::warning, field,
      "the " + what + " belongs to " + first.origin().to_string() + " and is not used for this object",
      "give one of the two another one");
  return false;
}

}  // namespace nodemesh::translate

#include "translate/claims.h"

namespace nodemesh::translate {

bool Claims::take(const std::string& what, const kube::Object& object, const char* field) {
  auto [owner, fresh] = owners_.try_emplace(what, Owner{&object, field});
  return fresh || settle(owner->second, what, object, field);
}

bool Claims::take(const Addr& address, const kube::Object& object, const char* field) {
  auto [owner, fresh] = owners_of_addresses_.try_emplace(address, Owner{&object, field});
  return fresh || settle(owner->second, "address " + address.to_string(), object, field);
}

bool Claims::settle(const Owner& owner, const std::string& what, const kube::Object& object,
                    const char* field) {
  if (owner.object == &object) return true;
  const auto& first = *owner.object;
  reports_.add(
      first, kube::Severity::warning, owner.field,
      "the " + what + " is also claimed by " + object.origin().to_string() + "; this object keeps it",
      "give one of the two another one");
  reports_.add(
      object, kube::Severity::warning, field,
      "the " + what + " belongs to " + first.origin().to_string() + " and is not used for this object",
      "give one of the two another one");
  return false;
}

}  // namespace nodemesh::translate

// Who owns an address, a uid or a network namespace: two objects that claim one are both told, the older
// keeps it. Built for one translation.
#pragma once

#include <map>
#include <string>
#include <unordered_map>

#include "base/addr.h"
#include "kube/objects.h"
#include "translate/status.h"

namespace nodemesh::translate {

class Claims {
 public:
  explicit Claims(Reports& reports) : reports_(reports) {}

  // `what` as in "uid 1". `field` outlives this. Call in the order of age; the first call wins. Reports at
  // `field` and returns false when another object has it.
  bool take(const std::string& what, const kube::Object& object, const char* field);
  bool take(const Addr& address, const kube::Object& object, const char* field);
  // Before its turn by age, and without a word: where it has been claimed, nothing changes.
  void reserve(const Addr& address, const kube::Object& object, const char* field) {
    owners_of_addresses_.try_emplace(address, Owner{&object, field});
  }

 private:
  struct Owner {
    const kube::Object* object;
    const char* field;
  };
  bool settle(const Owner& owner, const std::string& what, const kube::Object& object, const char* field);

  Reports& reports_;
  std::map<std::string, Owner> owners_;
  std::unordered_map<Addr, Owner> owners_of_addresses_;
};

}  // namespace nodemesh::translate

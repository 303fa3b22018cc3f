// Who owns an address, a uid or a network namespace: two objects that claim one are both told, the older
// keeps it. Built for one translation.
#pragma once

#include <map>
#include <string>

#include "kube/objects.h"
#include "translate/status.h"

namespace nodemesh::translate {

class Claims {
 public:
  explicit Claims(Reports& reports) : reports_(reports) {}

  // `what` as in "address 10.0.0.1". Call in the order of age; the first call wins. Reports at `field` and
  // returns false when another object has it.
  bool take(const std::string& what, const kube::Object& object, const std::string& field);

 private:
  struct Owner {
    const kube::Object* object;
    std::string field;
  };
  Reports& reports_;
  std::map<std::string, Owner> owners_;
};

}  // namespace nodemesh::translate

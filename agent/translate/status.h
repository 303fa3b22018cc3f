// Statuses of objects: joining what the store said of an object alone with what translation found in context,
// and finding what is new, so that each problem is logged once. Pure; any thread.
#pragma once

#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "kube/store.h"

namespace nodemesh::translate {

// Collects problems that only show in context.
class Reports {
 public:
  // At `field` of `object`; the line is that of the field where it exists. An error means that the object, or
  // the part of it that `message` names, is not in force.
  void add(const kube::Object& object, kube::Severity severity, const std::string& field, std::string message,
           std::string fix);
  void add(const kube::Object& object, kube::Problem problem);
  std::vector<kube::Status> merge(std::vector<kube::Status> statuses) const;

 private:
  using Key = std::tuple<std::string, std::string, std::string, std::string>;  // kind, namespace, name, file
  std::map<Key, kube::Problems> problems_;
};

// The problems in `after` that were not in `before`, each with the object it is about.
struct NewProblem {
  std::string object;  // "Pod shop/web"; empty for an unreadable document
  kube::Problem problem;
};
std::vector<NewProblem> new_problems(const std::vector<kube::Status>& before,
                                     const std::vector<kube::Status>& after);
// Logs them (component config), errors as errors and warnings as warnings.
void log_new_problems(const std::vector<kube::Status>& before, const std::vector<kube::Status>& after);

}  // namespace nodemesh::translate

// Events about what we refuse, so that `kubectl describe` of the refused object shows it. events.k8s.io/v1;
// an Event's name is made of what it says, so that the API server itself keeps us from saying it twice while
// it lasts (an hour by default), whichever replica speaks. At most 20 in 10 s, 10 of them of one namespace:
// who provokes refusals in a loop does not fill etcd, nor silence others. Main thread only.
#pragma once

#include <map>
#include <memory>
#include <set>
#include <string>

#include "base/clock.h"
#include "controller/api.h"

namespace nodemesh::controller {

// The object that an Event is about.
struct Regarding {
  std::string api_version, kind, ns, name, uid;
};

class EventPoster {
 public:
  // Both outlive it. `instance`: the name of this replica.
  EventPoster(const Clock& clock, Api& api, std::string instance)
      : clock_(clock), api_(api), instance_(std::move(instance)) {}

  // A Warning. `reason` and `action` in CamelCase; `note` for people, cut to 1 KiB, bytes that are not UTF-8
  // replaced. What becomes of it is only counted: nothing waits for an Event.
  void warn(const Regarding& about, const std::string& reason, const std::string& action,
            const std::string& note);
  uint64_t left_out() const { return left_out_; }

 private:
  bool may_post(const std::string& ns, const std::string& path);

  const Clock& clock_;
  Api& api_;
  const std::string instance_;
  std::set<std::string> said_;  // in this hour
  Monotonic::time_point hour_{}, window_{};
  int in_window_ = 0;
  std::map<std::string, int> of_namespace_;  // in this window
  uint64_t left_out_ = 0;
  bool complained_ = false;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

}  // namespace nodemesh::controller

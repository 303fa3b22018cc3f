// Says on each policy that the mesh reads whether it is accepted: the condition nodemesh.dev/Accepted in its
// status, judged by the agents' own code, and an Event when one is refused. Writes only what is not there
// yet, and never anything but status. Where conditions are a list without a key, as in Istio's CRDs, a
// server-side apply would own all of it; so the object is read, our condition put among the others', and the
// result written on the condition that nobody has written meanwhile. Main thread only.
#pragma once

#include <map>
#include <memory>
#include <string>

#include "controller/api.h"
#include "controller/conditions.h"
#include "controller/events.h"
#include "controller/paced_writes.h"
#include "kube/objects.h"
#include "kube/store.h"
#include "translate/translate.h"

namespace nodemesh::controller {

class PolicyStatuses {
 public:
  // All outlive it.
  PolicyStatuses(io::Reactor& reactor, const Clock& clock, Api& api, EventPoster& events,
                 translate::TranslateOptions options, PacedWrites::Settings pace = {});

  // Each object as the API server has it, before the store takes it; of other kinds as well.
  void note(const kube::Object& object);
  void forget(const kube::ObjectKey& key);
  // The store has changed and is complete.
  void update(const kube::Store& store);
  uint64_t writes() const { return writes_.writes(); }
  bool idle() const { return writes_.idle(); }

 private:
  struct Fact {
    std::string path;  // of the object
    Regarding regarding;
    int64_t generation = 0;
    std::optional<Condition> written;  // as last seen
    std::optional<Condition> wanted;
  };
  void write(const PacedWrites::Key& key, PacedWrites::Done done);
  void on_read(const PacedWrites::Key& key, const ApiReply& reply, PacedWrites::Done done);
  void put(const PacedWrites::Key& key, const Fact& fact, const Json& object, PacedWrites::Done done);
  void on_written(const PacedWrites::Key& key, const Condition& said, const ApiReply& reply,
                  PacedWrites::Done done);
  PacedWrites::Outcome failed(const ApiReply& reply);

  const Clock& clock_;
  Api& api_;
  EventPoster& events_;
  const translate::TranslateOptions options_;
  std::map<PacedWrites::Key, Fact> facts_;
  std::string trouble_;
  bool dirty_ = true;  // an object was noted or forgotten on which a status may depend
  PacedWrites writes_;
  std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);
};

}  // namespace nodemesh::controller

// What all connections of a worker have in common: a Record, a place in their pod's list, an end. A session
// owns its sockets and its relay, and destroys itself by Worker::bury. Worker thread only.
#pragma once

#include <cstddef>
#include <memory>

#include "base/reason.h"
#include "proxy/decide.h"
#include "telemetry/record.h"

namespace nodemesh::proxy {

class Worker;
struct PodState;
class Session;

// An intrusive list of the sessions of a pod: oldest first, but for those that overload has looked at and
// spared.
class SessionList {
 public:
  SessionList() = default;
  SessionList(const SessionList&) = delete;
  SessionList& operator=(const SessionList&) = delete;
  void push(Session& session);
  void erase(Session& session);
  Session* first() const { return first_; }
  size_t size() const { return size_; }

 private:
  Session* first_ = nullptr;
  Session* last_ = nullptr;
  size_t size_ = 0;
};

class Session {
 public:
  Session(Worker& worker, PodState& pod, telemetry::Direction direction);
  virtual ~Session();
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  // Ends it now, abruptly, for this reason.
  virtual void abort(const Error& error) = 0;
  // Is it still allowed by the current snapshot? Calls abort() if not.
  virtual void redecide() = 0;
  // When bytes last moved, in either direction and on either side.
  virtual Monotonic::time_point active_at() const = 0;
  // Bytes of memory that it holds because somebody does not read.
  virtual size_t held() const = 0;
  // How long it may be silent; 0: for ever.
  milliseconds idle_limit() const { return idle_limit_; }
  Session* next() const { return next_; }
  telemetry::Record& record() { return record_; }

 protected:
  // Completes the record and hands the session to be destroyed; call at most once, last.
  void end(const Error& error);
  // Notes in record and metrics what a decision said.
  Result<> note(const Admission& admission);
  // What a later decision says of an open connection: aborts it when that denies.
  void enforce(const Admission& admission);
  // Ends without a record: the connection goes on in a session of another worker.
  void leave();

  Worker& worker_;
  PodState& pod_;
  telemetry::Record record_;
  milliseconds idle_limit_;
  int port_clashes_ = 0;  // source ports that were in use when we connected to the application

 private:
  friend class SessionList;
  Session* next_ = nullptr;
  Session* previous_ = nullptr;
  bool ended_ = false;
};

}  // namespace nodemesh::proxy

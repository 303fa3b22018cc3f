// The record of one connection: made first, filled by every step of the data path, completed exactly once
// whatever happens. Completing counts it in the metrics and writes the access log line and the denial; a
// Record destroyed without that completes itself as INTERNAL and says so in the log, since it is a bug. Lives
// inside the session that it describes and on its worker's thread; it does not move, because the worker keeps
// a list of open ones.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "base/addr.h"
#include "base/clock.h"
#include "base/reason.h"
#include "telemetry/labels.h"
#include "telemetry/metrics.h"

namespace nodemesh::telemetry {

class Recorder;
class Record;

// Neighbours in the worker's list of open records.
struct RecordLink {
  RecordLink* previous = this;
  RecordLink* next = this;
};

class Record final : private RecordLink {
 public:
  // What most connections never have.
  struct Rare {
    std::string detail;  // what failed; may hold bytes of a peer, escaped where it is written
    std::string policy;  // "namespace/name" of the policy that decided
  };

  // Starts the clock and enters the worker's list. `recorder` outlives the record.
  Record(Recorder& recorder, Direction record_direction);
  ~Record();
  Record(const Record&) = delete;
  Record& operator=(const Record&) = delete;

  // Filled by the steps, in any order, before established() for those that label the series.
  SockAddr src;    // the client
  SockAddr dst;    // what the client dialled (outbound), where the application listens (inbound)
  SockAddr hbone;  // the HBONE peer; port 0: none
  WorkloadRef source, destination;
  ServiceRef service;
  // Proven identities (by certificate, or by the kernel on the same node); null: not proven.
  std::shared_ptr<const std::string> source_identity, destination_identity;
  const char* tls_version = nullptr;  // literals, e.g. "TLSv1.3"; null: no TLS
  const char* tls_cipher = nullptr;
  Path path = Path::passthrough;

  // The connection was decided, allowed and made: counts it as open in its series (for the path same_node in
  // both reporters' series). Call once; from here on byte counts show in a scrape while the connection lives.
  void established();
  // Bytes that went client → server, server → client. Cheap; per chunk is fine.
  void add_from_client(uint64_t n);
  void add_from_server(uint64_t n);
  // The first failure wins; later ones are consequences. Also for a connection that was established (reset,
  // revoked).
  void fail(Reason reason, std::string_view detail = {});
  void fail(const Error& error) { fail(error.reason, error.message); }
  // The policy that allowed or denied, "namespace/name".
  void decided_by(std::string_view policy);
  // Ends the record. Exactly once.
  void complete();
  // Ends it uncounted, before established(): the connection goes on under a record of another worker.
  void discard();

  uint64_t id() const { return id_; }  // unique in the process
  Direction direction() const { return direction_; }
  Reason reason() const { return reason_; }
  const Rare* rare() const { return rare_.get(); }
  bool is_established() const { return static_cast<bool>(series_); }
  bool is_completed() const { return completed_; }
  uint64_t from_client() const { return from_client_; }
  uint64_t from_server() const { return from_server_; }
  milliseconds age(Monotonic::time_point now) const;
  WallClock::time_point opened_at() const { return opened_wall_; }
  Security security() const;
  // Envoy's or ztunnel's name for how it ended, "-" for well.
  const char* flags() const;

 private:
  friend class Recorder;
  TcpLabels labels(Reporter reporter, const char* response_flags) const;
  void count_failure();
  Rare& rare_or_make();

  bool completed_ = false;
  Path open_path_ = Path::passthrough;  // under which it was counted as open
  const Direction direction_;
  Reason reason_ = Reason::NONE;
  Recorder& recorder_;
  uint64_t id_;
  uint64_t from_client_ = 0, from_server_ = 0;
  Monotonic::time_point opened_;
  WallClock::time_point opened_wall_;
  SeriesRef series_, other_series_;  // the second only where one process is both reporters
  std::unique_ptr<Rare> rare_;
};

static_assert(sizeof(Record) <= 272, "an idle connection may cost 3 KiB in all");

// The value of the label response_flags: Envoy's flags, and ztunnel's words where Envoy has none.
const char* response_flags(Reason reason);
// True for what the mesh refused (policy, identity, limits), as opposed to what failed or simply ended.
bool is_denial(Reason reason);

}  // namespace nodemesh::telemetry

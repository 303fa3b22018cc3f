#include "telemetry/record.h"

#include "base/log.h"
#include "telemetry/recorder.h"

namespace nodemesh::telemetry {
namespace {

std::string name_of(const std::shared_ptr<const std::string>& identity, const WorkloadRef& workload,
                    const SockAddr& addr) {
  if (identity) return *identity;
  if (workload && !workload->workload.empty()) return workload->ns + "/" + workload->workload;
  return addr.ip.to_string();
}

Denial describe(const Record& record, WallClock::time_point now, uint64_t suppressed) {
  Denial denial;
  denial.time = now;
  denial.source = name_of(record.source_identity, record.source, record.src);
  denial.destination = name_of(record.destination_identity, record.destination, record.dst) + ":" +
                       std::to_string(record.dst.port);
  denial.reason = record.reason();
  if (record.rare()) denial.policy = record.rare()->policy;
  denial.suppressed = suppressed;
  return denial;
}

// Denials are always told, whether or not there is an access log, but a flood of them only in samples.
void report_denial(Recorder& recorder, DenialRate& rate, const Record& record) {
  if (!rate.take(recorder.clock.now())) {
    recorder.metrics.denials_unlogged.add();
    return;
  }
  auto denial = describe(record, recorder.clock.wall(), std::exchange(rate.suppressed, 0));
  log::info(log::Component::proxy, "connection denied",
            {{"direction", name(record.direction())},
             {"source", denial.source},
             {"destination", denial.destination},
             {"src.addr", record.src.to_string()},
             {"dst.addr", record.dst.to_string()},
             {"reason", reason_name(denial.reason)},
             {"policy", denial.policy},
             {"detail", record.rare() ? std::string_view(record.rare()->detail) : reason_text(denial.reason)},
             {"suppressed", denial.suppressed}});
  recorder.denials.add(std::move(denial));
}

}  // namespace

Record::Record(Recorder& recorder, Direction record_direction)
    : direction_(record_direction),
      recorder_(recorder),
      id_(recorder.next_id_++),
      opened_(recorder.clock.now()),
      opened_wall_(recorder.clock.wall()) {
  previous = recorder.open_.previous;
  next = &recorder.open_;
  previous->next = this;
  next->previous = this;
}

Record::~Record() {
  if (completed_) return;
  log::error(log::Component::proxy, "a connection ended without completing its record",
             {{"src.addr", src.to_string()}, {"dst.addr", dst.to_string()}});
  fail(Reason::INTERNAL, "the record was not completed");
  complete();
}

Security Record::security() const {
  return tls_version ? Security::mutual_tls : Security::none;
}

const char* Record::flags() const {
  return response_flags(reason_);
}

milliseconds Record::age(Monotonic::time_point now) const {
  return std::chrono::duration_cast<milliseconds>(now - opened_);
}

TcpLabels Record::labels(Reporter reporter, const char* flags) const {
  TcpLabels labels;
  labels.source = source;
  labels.destination = destination;
  labels.service = service;
  labels.response_flags = flags;
  labels.reporter = reporter;
  labels.security = security();
  labels.source_verified = source_identity != nullptr;
  labels.destination_verified = destination_identity != nullptr;
  return labels;
}

void Record::established() {
  if (series_ || completed_) return;
  auto own = direction_ == Direction::outbound ? Reporter::source : Reporter::destination;
  series_ = recorder_.metrics.tcp(labels(own, "-"));
  series_->opened.add();
  recorder_.metrics.open(direction_, path).add(1);
  open_path_ = path;
  if (path == Path::same_node) {
    auto other = own == Reporter::source ? Reporter::destination : Reporter::source;
    other_series_ = recorder_.metrics.tcp(labels(other, "-"));
    other_series_->opened.add();
  }
  // Bytes that came before the other half was there.
  auto early_from_client = std::exchange(from_client_, 0), early_from_server = std::exchange(from_server_, 0);
  add_from_client(early_from_client);
  add_from_server(early_from_server);
}

void Record::add_from_client(uint64_t n) {
  from_client_ += n;
  if (series_) series_->received.add(n);
  if (other_series_) other_series_->received.add(n);
}

void Record::add_from_server(uint64_t n) {
  from_server_ += n;
  if (series_) series_->sent.add(n);
  if (other_series_) other_series_->sent.add(n);
}

Record::Rare& Record::rare_or_make() {
  if (!rare_) rare_ = std::make_unique<Rare>();
  return *rare_;
}

void Record::fail(Reason reason, std::string_view detail) {
  if (reason_ != Reason::NONE || completed_) return;
  reason_ = reason;
  if (!detail.empty()) rare_or_make().detail = detail;
}

void Record::decided_by(std::string_view policy) {
  if (!policy.empty()) rare_or_make().policy = policy;
}

// A connection that never was open counts as failed, with the flag of its reason: opened and closed stay
// balanced.
void Record::count_failure() {
  for (auto reporter : {Reporter::source, Reporter::destination}) {
    bool own = (reporter == Reporter::source) == (direction_ == Direction::outbound);
    if (own || path == Path::same_node) recorder_.metrics.tcp(labels(reporter, flags()))->failed.add();
  }
}

void Record::discard() {
  completed_ = true;
  previous->next = next;
  next->previous = previous;
}

void Record::complete() {
  if (completed_) return;
  completed_ = true;
  previous->next = next;
  next->previous = previous;
  auto& metrics = recorder_.metrics;
  metrics.total(direction_, path, reason_).add();
  if (series_) {
    series_->closed.add();
    metrics.open(direction_, open_path_).add(-1);
    if (other_series_) other_series_->closed.add();
  } else if (reason_ != Reason::NONE) {
    count_failure();
  }
  if (recorder_.access_log.enabled()) recorder_.access_log.write(*this, recorder_.clock.now());
  if (is_denial(reason_)) report_denial(recorder_, recorder_.rate_, *this);
  series_.reset();
  other_series_.reset();
}

bool is_denial(Reason reason) {
  switch (reason) {
    case Reason::POD_UNKNOWN:
    case Reason::POLICY_DENY:
    case Reason::POLICY_NO_ALLOW:
    case Reason::STRICT_PLAINTEXT:
    case Reason::POLICY_UNSUPPORTED:
    case Reason::POLICY_REVOKED:
    case Reason::NO_IDENTITY:
    case Reason::PEER_CERT_MISSING:
    case Reason::PEER_CERT_INVALID:
    case Reason::PEER_ID_INVALID:
    case Reason::TRUST_DOMAIN:
    case Reason::PEER_ID_MISMATCH:
    case Reason::ALPN_MISMATCH:
    case Reason::BAD_METHOD:
    case Reason::BAD_AUTHORITY:
    case Reason::WRONG_DESTINATION:
    case Reason::LOOP:
    case Reason::H2_FLOOD:
    case Reason::HEADERS_TOO_LARGE:
    case Reason::PEER_UNKNOWN:
    case Reason::OVER_LIMIT:
    case Reason::OUT_OF_DESCRIPTORS:
      return true;
    default:
      return false;
  }
}

const char* response_flags(Reason reason) {
  switch (reason) {
    case Reason::NONE:
      return "-";
    case Reason::POD_UNKNOWN:
    case Reason::POLICY_DENY:
    case Reason::POLICY_NO_ALLOW:
    case Reason::STRICT_PLAINTEXT:
    case Reason::POLICY_UNSUPPORTED:
    case Reason::POLICY_REVOKED:
      return "DENY";
    case Reason::NO_IDENTITY:
    case Reason::PEER_ID_INVALID:
    case Reason::TRUST_DOMAIN:
    case Reason::PEER_ID_MISMATCH:
      return "IDENTITY_ERROR";
    case Reason::TLS_FAILED:
    case Reason::PEER_CERT_MISSING:
    case Reason::PEER_CERT_INVALID:
    case Reason::ALPN_MISMATCH:
    case Reason::HANDSHAKE_TIMEOUT:
      return "TLS_FAILURE";
    case Reason::H2_PROTOCOL:
    case Reason::H2_FLOOD:
    case Reason::HEADERS_TOO_LARGE:
      return "H2_HANDSHAKE_FAILURE";
    case Reason::BAD_METHOD:
    case Reason::BAD_AUTHORITY:
    case Reason::WRONG_DESTINATION:
    case Reason::TUNNEL_REFUSED:
      return "CONNECT";
    case Reason::LOOP:
    case Reason::NO_ROUTE:
      return "NR";
    case Reason::HTTP_MALFORMED:
      return "DPE";
    case Reason::NO_ENDPOINTS:
      return "UH";
    case Reason::PEER_UNKNOWN:
      return "NC";
    case Reason::NO_LISTENER:
    case Reason::NO_ADDRESS:
    case Reason::MAP_FULL:
    case Reason::UNPUBLISHED:
    case Reason::CONNECT_REFUSED:
    case Reason::CONNECT_TIMEOUT:
    case Reason::CONNECT_FAILED:
    case Reason::NO_SOCKET:
      return "UF";
    case Reason::PING_TIMEOUT:
    case Reason::TUNNEL_LOST:
    case Reason::STREAM_RESET:
    case Reason::GOAWAY:
      return "UC";
    case Reason::PEER_RESET:
      return "DC";
    case Reason::IDLE_TIMEOUT:
      return "SI";
    case Reason::SHUTDOWN:
    case Reason::POD_GONE:
    case Reason::INTERNAL:
      return "LR";
    case Reason::OVER_LIMIT:
    case Reason::OUT_OF_DESCRIPTORS:
      return "UO";
  }
  return "LR";
}

}  // namespace nodemesh::telemetry

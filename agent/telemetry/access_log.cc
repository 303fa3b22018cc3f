#include "telemetry/access_log.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cstring>
#include <ctime>

#include "base/log.h"
#include "telemetry/metrics.h"
#include "telemetry/record.h"

namespace nodemesh::telemetry {
namespace {

constexpr size_t kFlushBytes = 32 << 10;
constexpr milliseconds kFlushAfter{20};

void append_number(std::string& out, int64_t value) {
  char text[24];
  auto [end, error] = std::to_chars(text, text + sizeof text, value);
  out.append(text, end);
}

void append_padded(std::string& out, int value, int width) {
  char text[8];
  auto [end, error] = std::to_chars(text, text + sizeof text, value);
  for (auto length = end - text; length < width; ++length) out += '0';
  out.append(text, end);
}

// 2026-01-31T12:00:00.123Z
void append_time(std::string& out, WallClock::time_point when) {
  auto ms = std::chrono::duration_cast<milliseconds>(when.time_since_epoch()).count();
  std::time_t secs = ms / 1000;
  std::tm parts{};
  gmtime_r(&secs, &parts);
  append_padded(out, parts.tm_year + 1900, 4);
  append_padded(out += '-', parts.tm_mon + 1, 2);
  append_padded(out += '-', parts.tm_mday, 2);
  append_padded(out += 'T', parts.tm_hour, 2);
  append_padded(out += ':', parts.tm_min, 2);
  append_padded(out += ':', parts.tm_sec, 2);
  append_padded(out += '.', static_cast<int>(ms % 1000), 3);
  out += 'Z';
}

// A word of the text format: what could end the field, the quotes or the line becomes \xNN.
void append_word(std::string& out, std::string_view text, bool quoted) {
  static constexpr char kHex[] = "0123456789abcdef";
  if (text.empty()) out += '-';
  for (unsigned char c : text) {
    bool plain = c > 0x20 && c < 0x7f && c != '"' && c != '\\';
    if (plain || (quoted && c == ' ')) {
      out += static_cast<char>(c);
    } else {
      out += "\\x";
      out += kHex[c >> 4];
      out += kHex[c & 15];
    }
  }
}

std::string_view detail_of(const Record& record) {
  if (record.rare() && !record.rare()->detail.empty()) return record.rare()->detail;
  return record.reason() == Reason::NONE ? std::string_view() : reason_text(record.reason());
}

std::string address_or_none(const SockAddr& addr) {
  return addr.port == 0 ? std::string() : addr.to_string();
}

// Envoy's cluster names for TCP: "outbound|5432||db.shop.svc.cluster.local", "inbound|5432||",
// "PassthroughCluster".
std::string cluster_of(const Record& record) {
  auto port = std::to_string(record.dst.port);
  if (record.direction() == Direction::inbound) return "inbound|" + port + "||";
  if (!record.service) return "PassthroughCluster";
  return "outbound|" + port + "||" + record.service->host;
}

class JsonLine {
 public:
  explicit JsonLine(std::string& out) : out_(out) { out_ += '{'; }
  void text(std::string_view key, std::string_view value) {
    start(key);
    out_ += log::json_string(value);
  }
  void text_or_null(std::string_view key, std::string_view value) {
    if (!value.empty()) return text(key, value);
    start(key);
    out_ += "null";
  }
  void number(std::string_view key, int64_t value) {
    start(key);
    append_number(out_, value);
  }
  void end() { out_ += "}\n"; }

 private:
  void start(std::string_view key) {
    if (out_.back() != '{') out_ += ',';
    out_ += '"';
    out_ += key;
    out_ += "\":";
  }
  std::string& out_;
};

void add_envoy_fields(JsonLine& line, const Record& record, Monotonic::time_point now) {
  std::string start;
  append_time(start, record.opened_at());
  line.text("start_time", start);
  for (auto key : {"method", "path", "protocol"}) line.text_or_null(key, "");
  line.number("response_code", 0);
  line.text("response_flags", record.flags());
  line.text_or_null("response_code_details", "");
  auto reason = record.reason() == Reason::NONE ? std::string_view() : reason_name(record.reason());
  line.text_or_null("connection_termination_details", reason);
  line.text_or_null("upstream_transport_failure_reason", detail_of(record));
  line.number("bytes_received", static_cast<int64_t>(record.from_client()));
  line.number("bytes_sent", static_cast<int64_t>(record.from_server()));
  line.number("duration", record.age(now).count());
  for (auto key : {"upstream_service_time", "x_forwarded_for", "user_agent", "request_id", "authority"}) {
    line.text_or_null(key, "");
  }
  auto upstream = address_or_none(record.hbone.port ? record.hbone : record.dst);
  line.text_or_null("upstream_host", upstream);
  line.text("upstream_cluster", cluster_of(record));
  line.text_or_null("upstream_local_address", "");
  line.text_or_null("downstream_local_address", address_or_none(record.dst));
  line.text_or_null("downstream_remote_address", address_or_none(record.src));
  line.text_or_null("requested_server_name", "");
  line.text_or_null("route_name", "");
}

void add_side(JsonLine& line, const std::string& side, const WorkloadRef& workload,
              const std::shared_ptr<const std::string>& identity) {
  if (workload) {
    line.text(side + ".workload", workload->workload);
    line.text(side + ".namespace", workload->ns);
    if (!workload->cluster.empty()) line.text(side + ".cluster", workload->cluster);
  }
  if (identity) line.text(side + ".identity", *identity);
}

// ztunnel leaves absent fields out, and so does this. bytes_sent is the same key with the same meaning as
// Envoy's.
void add_ztunnel_fields(JsonLine& line, const Record& record) {
  line.text("src.addr", record.src.to_string());
  add_side(line, "src", record.source, record.source_identity);
  line.text("dst.addr", record.dst.to_string());
  if (record.hbone.port) line.text("dst.hbone_addr", record.hbone.to_string());
  if (record.service) line.text("dst.service", record.service->host);
  add_side(line, "dst", record.destination, record.destination_identity);
  line.text("direction", name(record.direction()));
  line.number("bytes_recv", static_cast<int64_t>(record.from_client()));
  if (record.reason() != Reason::NONE) line.text("error", detail_of(record));
}

}  // namespace

void format_text(const Record& record, Monotonic::time_point now, std::string& out) {
  out += '[';
  append_time(out, record.opened_at());
  out += "] \"- - -\" 0 ";
  out += record.flags();
  out += " - ";
  out += record.reason() == Reason::NONE ? std::string_view("-") : reason_name(record.reason());
  out += " \"";
  append_word(out, detail_of(record), true);
  out += "\" ";
  append_number(out, static_cast<int64_t>(record.from_client()));
  append_number(out += ' ', static_cast<int64_t>(record.from_server()));
  append_number(out += ' ', record.age(now).count());
  out += " - \"-\" \"-\" \"-\" \"-\" \"";
  append_word(out, address_or_none(record.hbone.port ? record.hbone : record.dst), true);
  out += "\" ";
  append_word(out, cluster_of(record), false);
  out += " - ";
  append_word(out, address_or_none(record.dst), false);
  append_word(out += ' ', address_or_none(record.src), false);
  out += " - -\n";
}

void format_json(const Record& record, Monotonic::time_point now, std::string& out) {
  JsonLine line(out);
  add_envoy_fields(line, record, now);
  add_ztunnel_fields(line, record);
  line.text("path_kind", name(record.path));
  line.text_or_null("tls_version", record.tls_version ? record.tls_version : "");
  line.text_or_null("tls_cipher", record.tls_cipher ? record.tls_cipher : "");
  if (record.rare() && !record.rare()->policy.empty()) line.text("policy", record.rare()->policy);
  line.end();
}

AccessLog::AccessLog(io::Reactor& admin) : reactor_(admin), mailbox_(admin) {}
AccessLog::~AccessLog() {
  close_file();
}

void AccessLog::configure(std::string path, LogFormat format) {
  mailbox_.post([this, path = std::move(path), format] { open(path, format); });
}

void AccessLog::close_file() {
  if (polled_) reactor_.remove(file_.get(), *this, true);
  polled_ = false;
  file_.reset();
  for (const auto& chunk : pending_) pending_bytes_.fetch_sub(chunk.size(), std::memory_order_relaxed);
  pending_.clear();
  written_ = 0;
}

// A fresh open gives the pipe behind /dev/stdout a description of its own, so that O_NONBLOCK does not reach
// the log on the same pipe. Non-blocking also keeps a FIFO without a reader from stopping the admin thread.
void AccessLog::open(const std::string& path, LogFormat format) {
  format_ = static_cast<int>(LogFormat::off);
  close_file();
  if (path.empty() || format == LogFormat::off) return;
  int flags = O_WRONLY | O_APPEND | O_CREAT | O_NONBLOCK | O_CLOEXEC | O_NOCTTY;
  file_.reset(::open(path.c_str(), flags, 0640));
  // A socket cannot be opened by path, nor a file or pipe of root's by the user we have become; write to a
  // copy of the descriptor that was inherited.
  if (!file_ && (errno == ENXIO || errno == EACCES) && path == "/dev/stdout")
    file_.reset(::fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, 3));
  if (!file_) {
    log::error(log::Component::config,
               "the access log cannot be opened, so it is off: correct MeshConfig.accessLogFile",
               {{"file", path}, {"error", std::strerror(errno)}});
    return;
  }
  struct stat status{};
  // Regular files do not poll; they are written at once.
  polled_ = ::fstat(file_.get(), &status) == 0 && !S_ISREG(status.st_mode) &&
            reactor_.add(file_.get(), *this, EPOLLOUT).has_value();
  format_ = static_cast<int>(format);
}

bool AccessLog::submit(std::string chunk) {
  if (pending_bytes_.fetch_add(chunk.size(), std::memory_order_relaxed) + chunk.size() > kMaxPending) {
    pending_bytes_.fetch_sub(chunk.size(), std::memory_order_relaxed);
    return false;
  }
  mailbox_.post([this, chunk = std::move(chunk)]() mutable {
    pending_.push_back(std::move(chunk));
    write_pending();
  });
  return true;
}

void AccessLog::write_pending() {
  while (!pending_.empty()) {
    const auto& chunk = pending_.front();
    ssize_t wrote = file_ ? ::write(file_.get(), chunk.data() + written_, chunk.size() - written_) : 0;
    if (wrote < 0 && errno == EINTR) continue;
    if (wrote < 0 && errno == EAGAIN && polled_) return;
    bool lost =
        wrote < 0 || !file_;  // the disk is full, or the log was switched off: newer lines matter more
    written_ += lost ? 0 : static_cast<size_t>(wrote);
    if (!lost && written_ < chunk.size()) continue;
    pending_bytes_.fetch_sub(chunk.size(), std::memory_order_relaxed);
    pending_.pop_front();
    written_ = 0;
  }
}

void AccessLog::on_events(uint32_t) {
  write_pending();
}

AccessLogShard::AccessLogShard(AccessLog& log, MetricShard& metrics, io::Reactor& reactor)
    : log_(log), metrics_(metrics), reactor_(reactor), timer_([this] { flush(); }) {}

void AccessLogShard::write(const Record& record, Monotonic::time_point now) {
  auto format = log_.format();
  if (format == LogFormat::text) format_text(record, now, buffer_);
  if (format == LogFormat::json) format_json(record, now, buffer_);
  ++lines_;
  if (buffer_.size() >= kFlushBytes) return flush();
  if (!timer_.armed()) timer_.arm(reactor_, kFlushAfter);
}

void AccessLogShard::flush() {
  timer_.cancel();
  if (buffer_.empty()) return;
  if (!log_.submit(std::exchange(buffer_, {}))) metrics_.access_log_dropped.add(lines_);
  lines_ = 0;
}

}  // namespace nodemesh::telemetry

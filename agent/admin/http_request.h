// A strict, bounded HTTP/1.1 request parser (RFC 9112) for the admin ports: bytes in, requests out, no I/O.
// It accepts what Prometheus, kubelet, curl and meshctl send and refuses everything that two readers could
// take differently. One per connection, admin thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace nodemesh::admin {

struct Request {
  std::string method;  // "GET", "HEAD" or "POST"
  std::string path;    // begins with '/', not decoded
  std::string query;   // after '?', not decoded
  std::string host;
  bool keep_alive = true;
  bool has_origin = false;  // sent by a web page

  // The decoded value of a query parameter; nullopt if absent or badly encoded.
  std::optional<std::string> parameter(std::string_view name) const;
};

class RequestParser {
 public:
  static constexpr size_t kMaxHead = 8 * 1024;
  static constexpr size_t kMaxBody = 64 * 1024;  // bodies are read and ignored
  enum class Status { need_more, ready, bad };

  // Appends what was read. Keeps at most kMaxHead + what one call brings.
  void feed(std::string_view bytes) { buffer_.append(bytes); }
  // Tries to take one request off the buffer; what follows stays for the next call. After `bad` the
  // connection is to be answered with status() and closed.
  Status next(Request& request);
  int status() const { return status_; }                 // of a bad request, e.g. 431
  std::string_view problem() const { return problem_; }  // one sentence, ASCII
  bool idle() const { return buffer_.empty() && body_left_ == 0; }
  size_t buffered() const { return buffer_.size(); }

 private:
  Status refuse(int status, std::string_view problem);
  bool skip_body();
  Status parse_head(std::string_view head, Request& request);
  Status parse_request_line(std::string_view line, Request& request);
  Status parse_field(std::string_view line, Request& request);
  Status apply_field(std::string_view name, std::string_view value, Request& request);

  std::string buffer_;
  size_t scanned_ = 0;
  size_t body_left_ = 0;
  bool have_request_ = false;
  bool http10_ = false, have_length_ = false, have_host_ = false;
  Request pending_;
  int status_ = 0;
  std::string_view problem_;
};

}  // namespace nodemesh::admin

#include "admin/http_request.h"

#include <algorithm>
#include <charconv>

namespace nodemesh::admin {
namespace {

bool is_token(std::string_view text) {
  static constexpr std::string_view kMarks = "!#$%&'*+-.^_`|~";
  auto ok = [](unsigned char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
           kMarks.find(static_cast<char>(c)) != kMarks.npos;
  };
  return !text.empty() && std::ranges::all_of(text, ok);
}

bool is_field_value(std::string_view text) {
  return std::ranges::all_of(text, [](unsigned char c) { return c == '\t' || (c >= 0x20 && c != 0x7f); });
}

bool same_name(std::string_view a, std::string_view lower) {
  return std::ranges::equal(a, lower,
                            [](char x, char y) { return (x >= 'A' && x <= 'Z' ? x + 32 : x) == y; });
}

std::string_view trim(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t')) text.remove_suffix(1);
  return text;
}

int hex(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

std::optional<std::string> decode(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '%') {
      out += text[i] == '+' ? ' ' : text[i];
      continue;
    }
    if (i + 2 >= text.size() || hex(text[i + 1]) < 0 || hex(text[i + 2]) < 0) return std::nullopt;
    out += static_cast<char>(hex(text[i + 1]) * 16 + hex(text[i + 2]));
    i += 2;
  }
  return out;
}

}  // namespace

std::optional<std::string> Request::parameter(std::string_view name) const {
  std::string_view rest = query;
  while (!rest.empty()) {
    auto pair = rest.substr(0, rest.find('&'));
    rest.remove_prefix(std::min(rest.size(), pair.size() + 1));
    auto equals = pair.find('=');
    if (pair.substr(0, equals) != name) continue;
    return decode(equals == pair.npos ? std::string_view() : pair.substr(equals + 1));
  }
  return std::nullopt;
}

RequestParser::Status RequestParser::refuse(int status, std::string_view problem) {
  status_ = status;
  problem_ = problem;
  return Status::bad;
}

bool RequestParser::skip_body() {
  size_t take = std::min(body_left_, buffer_.size());
  buffer_.erase(0, take);
  body_left_ -= take;
  return body_left_ == 0;
}

RequestParser::Status RequestParser::next(Request& request) {
  if (status_) return Status::bad;
  if (!have_request_) {
    // RFC 9112 2.2: empty lines before a request are ignored, within reason.
    while (scanned_ == 0 && buffer_.starts_with("\r\n")) buffer_.erase(0, 2);
    if (buffer_ == "\r") return Status::need_more;  // perhaps half of one
    auto end = buffer_.find("\r\n\r\n", scanned_ > 3 ? scanned_ - 3 : 0);
    if (end == buffer_.npos || end + 4 > kMaxHead) {
      if (buffer_.size() > kMaxHead || end != buffer_.npos)
        return refuse(431, "the request's head exceeds 8 KiB");
      scanned_ = buffer_.size();
      return Status::need_more;
    }
    pending_ = {};
    http10_ = have_length_ = have_host_ = false;
    if (parse_head(std::string_view(buffer_).substr(0, end), pending_) == Status::bad) return Status::bad;
    buffer_.erase(0, end + 4);
    scanned_ = 0;
    have_request_ = true;
  }
  if (!skip_body()) return Status::need_more;
  have_request_ = false;
  request = std::move(pending_);
  return Status::ready;
}

RequestParser::Status RequestParser::parse_head(std::string_view head, Request& request) {
  auto line_end = head.find("\r\n");
  if (parse_request_line(head.substr(0, line_end), request) == Status::bad) return Status::bad;
  while (line_end != head.npos) {
    head.remove_prefix(line_end + 2);
    line_end = head.find("\r\n");
    if (parse_field(head.substr(0, line_end), request) == Status::bad) return Status::bad;
  }
  if (!have_host_ && !http10_) return refuse(400, "the Host field is missing");
  return Status::ready;
}

RequestParser::Status RequestParser::parse_request_line(std::string_view line, Request& request) {
  auto first = line.find(' '), second = line.rfind(' ');
  if (first == line.npos || first == second)
    return refuse(400, "the request line is not METHOD TARGET VERSION");
  auto method = line.substr(0, first), target = line.substr(first + 1, second - first - 1),
       version = line.substr(second + 1);
  if (!is_token(method)) return refuse(400, "the method is not a token");
  if (version != "HTTP/1.1" && version != "HTTP/1.0")
    return refuse(505, "only HTTP/1.1 and HTTP/1.0 are served");
  bool visible =
      std::ranges::all_of(target, [](unsigned char c) { return c > 0x20 && c < 0x7f && c != '#'; });
  if (!target.starts_with('/') || !visible) return refuse(400, "the target is not an absolute path");
  if (method != "GET" && method != "HEAD" && method != "POST")
    return refuse(405, "only GET, HEAD and POST are served");
  http10_ = version == "HTTP/1.0";
  request.keep_alive = !http10_;
  request.method = method;
  auto question = target.find('?');
  request.path = target.substr(0, question);
  if (question != target.npos) request.query = target.substr(question + 1);
  return Status::ready;
}

RequestParser::Status RequestParser::parse_field(std::string_view line, Request& request) {
  auto colon = line.find(':');
  if (colon == line.npos || !is_token(line.substr(0, colon)))
    return refuse(400, "a header field is malformed");
  auto value = trim(line.substr(colon + 1));
  if (!is_field_value(value)) return refuse(400, "a header field's value holds a control character");
  return apply_field(line.substr(0, colon), value, request);
}

RequestParser::Status RequestParser::apply_field(std::string_view name, std::string_view value,
                                                 Request& request) {
  if (same_name(name, "host")) {
    if (have_host_) return refuse(400, "the Host field is repeated");
    have_host_ = true;
    request.host = value;
  } else if (same_name(name, "content-length")) {
    if (have_length_) return refuse(400, "the Content-Length field is repeated");
    have_length_ = true;
    auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), body_left_);
    bool digits = !value.empty() && std::ranges::all_of(value, [](char c) { return c >= '0' && c <= '9'; });
    if (!digits || end != value.data() + value.size()) return refuse(400, "Content-Length is not a number");
    if (error != std::errc{} || body_left_ > kMaxBody) return refuse(413, "the body exceeds 64 KiB");
  } else if (same_name(name, "transfer-encoding")) {
    return refuse(501, "Transfer-Encoding is not served");
  } else if (same_name(name, "expect")) {
    return refuse(417, "Expect is not served");
  } else if (same_name(name, "origin")) {
    request.has_origin = true;
  } else if (same_name(name, "connection")) {
    if (same_name(value, "close")) request.keep_alive = false;
    if (http10_ && same_name(value, "keep-alive")) request.keep_alive = true;
  }
  return Status::ready;
}

}  // namespace nodemesh::admin

#include "kube/h1_response.h"

#include <algorithm>
#include <charconv>
#include <optional>

#include <fmt/format.h>

namespace nodemesh::kube {
namespace {

std::string lower(std::string_view text) {
  std::string out(text);
  std::ranges::transform(out, out.begin(), [](unsigned char c) { return std::tolower(c); });
  return out;
}

// RFC 9110 5.6.2.
bool is_token(std::string_view text) {
  return !text.empty() && std::ranges::all_of(text, [](unsigned char c) {
    return std::isalnum(c) ||
           std::string_view("!#$%&'*+-.^_`|~").find(static_cast<char>(c)) != std::string_view::npos;
  });
}

bool is_value(std::string_view text) {
  return std::ranges::all_of(text, [](unsigned char c) { return c == '\t' || (c >= 0x20 && c != 0x7f); });
}

std::string_view trimmed(std::string_view text) {
  auto space = [](char c) { return c == ' ' || c == '\t'; };
  while (!text.empty() && space(text.back())) text.remove_suffix(1);
  while (!text.empty() && space(text.front())) text.remove_prefix(1);
  return text;
}

template <class Number>
std::optional<Number> number(std::string_view text, int base) {
  Number value = 0;
  auto [end, bad] = std::from_chars(text.data(), text.data() + text.size(), value, base);
  if (text.empty() || bad != std::errc() || end != text.data() + text.size() || text.front() == '-')
    return std::nullopt;
  return value;
}

}  // namespace

Result<size_t> H1Response::feed(std::string_view bytes) {
  size_t before = bytes.size();
  if (!bytes.empty()) begun_ = true;
  while (state_ != State::done && !bytes.empty()) {
    if (state_ == State::body || state_ == State::chunk) {
      take_body(bytes);
      continue;
    }
    auto ended = take_line(bytes);
    if (!ended) return std::unexpected(ended.error());
    if (!*ended) break;
    if (auto read = on_line(); !read) return std::unexpected(read.error());
    line_.clear();
  }
  return before - bytes.size();
}

void H1Response::take_body(std::string_view& bytes) {
  auto size = static_cast<size_t>(std::min<uint64_t>(left_, bytes.size()));
  left_ -= size;
  std::string_view piece = bytes.substr(0, size);
  bytes.remove_prefix(size);
  if (left_ == 0) state_ = state_ == State::body ? State::done : State::chunk_end;
  reader_.on_body(piece);
}

// A whole line without its end in line_. What is kept between calls is bounded by the head's limit.
Result<bool> H1Response::take_line(std::string_view& bytes) {
  size_t end = bytes.find('\n');
  std::string_view piece = bytes.substr(0, end);
  head_bytes_ += piece.size() + (end == bytes.npos ? 0 : 1);
  // Chunk heads are counted one by one.
  if (head_bytes_ > kMaxHead || line_.size() + piece.size() > kMaxHead)
    return fail(Reason::HEADERS_TOO_LARGE, "HTTP/1.1: the response's header is larger than 60 KiB");
  line_.append(piece);
  bool ended = end != bytes.npos;
  bytes.remove_prefix(ended ? end + 1 : bytes.size());
  if (!ended) return false;
  if (!line_.ends_with('\r')) return fail("HTTP/1.1: a line does not end with CR LF");
  line_.pop_back();
  return true;
}

Result<> H1Response::on_line() {
  switch (state_) {
    case State::status:
      return read_status();
    case State::fields:
      return line_.empty() ? end_of_fields() : read_field();
    case State::chunk_size:
      return read_chunk_size();
    case State::chunk_end:
      if (!line_.empty()) return fail("HTTP/1.1: a chunk is longer than its size");
      head_bytes_ = 0;
      state_ = State::chunk_size;
      return {};
    case State::trailers:
      if (line_.empty()) state_ = State::done;
      return {};
    default:
      return fail("HTTP/1.1: bytes in no place");
  }
}

Result<> H1Response::read_status() {
  std::string_view line = line_;
  bool version_0 = line.starts_with("HTTP/1.0 ");
  if (!version_0 && !line.starts_with("HTTP/1.1 ")) return fail("HTTP/1.1: the response has no status line");
  auto code = line.substr(9, 3);
  auto status = number<int>(code, 10);
  if (code.size() != 3 || !status || *status < 100 || (line.size() > 12 && line[12] != ' ') ||
      !is_value(line))
    return fail("HTTP/1.1: the status line has no three-digit status");
  status_ = *status;
  keep_alive_ = !version_0;
  fields_.clear();
  state_ = State::fields;
  return {};
}

Result<> H1Response::read_field() {
  std::string_view line = line_;
  size_t colon = line.find(':');
  if (colon == line.npos || !is_token(line.substr(0, colon)) || !is_value(line.substr(colon + 1)))
    return fail("HTTP/1.1: a header line is no field");
  if (fields_.size() == kMaxFields)
    return fail(Reason::HEADERS_TOO_LARGE, "HTTP/1.1: the response has more than 100 header fields");
  fields_.emplace_back(lower(line.substr(0, colon)), trimmed(line.substr(colon + 1)));
  return {};
}

Result<> H1Response::end_of_fields() {
  head_bytes_ = 0;
  if (status_ == 101) return fail("HTTP/1.1: the server switched protocols without being asked");
  if (status_ < 200) {
    state_ = State::status;
    return {};
  }
  if (auto framing = read_framing(); !framing) return framing;
  reader_.on_head(status_, fields_);
  return {};
}

// RFC 9112 6.3.
Result<> H1Response::read_framing() {
  std::optional<uint64_t> length;
  bool chunked = false;
  for (const auto& [name, value] : fields_) {
    if (name == "connection" && lower(value).find("close") != std::string::npos) keep_alive_ = false;
    if (name == "transfer-encoding") {
      if (chunked || lower(value) != "chunked") return fail("HTTP/1.1: a transfer coding other than chunked");
      chunked = true;
    }
    if (name == "content-length") {
      auto said = number<uint64_t>(value, 10);
      if (!said || length) return fail("HTTP/1.1: Content-Length is not one number");
      length = said;
    }
  }
  if (chunked && length) return fail("HTTP/1.1: both Content-Length and Transfer-Encoding");
  if (status_ == 204 || status_ == 304) length = 0, chunked = false;
  if (chunked) {
    state_ = State::chunk_size;
  } else if (length) {
    left_ = *length;
    state_ = left_ == 0 ? State::done : State::body;
  } else {
    return fail("HTTP/1.1: the response says neither its length nor that it is chunked");
  }
  return {};
}

Result<> H1Response::read_chunk_size() {
  std::string_view line = line_;
  auto size = number<uint32_t>(trimmed(line.substr(0, line.find(';'))), 16);
  if (!size) return fail("HTTP/1.1: a chunk has no size");
  left_ = *size;
  head_bytes_ = 0;
  state_ = left_ == 0 ? State::trailers : State::chunk;
  return {};
}

}  // namespace nodemesh::kube

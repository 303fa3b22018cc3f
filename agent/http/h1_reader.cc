#include "http/h1_reader.h"

#include <algorithm>
#include <array>

#include "http/h1_grammar.h"

namespace nodemesh::http {
namespace {

constexpr size_t kExtensionBytes = 256;           // of one chunk
constexpr size_t kAllExtensionBytes = 16 * 1024;  // of a message
constexpr size_t kChunkDigits = 15;
constexpr size_t kLengthDigits = 18;
constexpr size_t kConnectionNames = 16;
constexpr int kInterims = 32;  // before one final response

std::unexpected<H1Refusal> refuse(std::string message, int status = 400) {
  auto reason = status == 431 || status == 414 ? Reason::HEADERS_TOO_LARGE : Reason::HTTP_MALFORMED;
  return std::unexpected(H1Refusal{status, {reason, std::move(message)}});
}

}  // namespace

void H1Reader::expect(std::string_view method) {
  head_method_ = method == "HEAD";
  connect_method_ = method == "CONNECT";
}

std::expected<size_t, H1Refusal> H1Reader::feed(std::span<const uint8_t> bytes) {
  std::string_view all(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  std::string_view left = all;
  while (!left.empty() && state_ != State::done) {
    Read<size_t> used;
    switch (state_) {
      case State::head:
      case State::trailers:
        used = take_block(left);
        break;
      case State::chunk_size:
        used = take_chunk_size(left);
        break;
      case State::chunk_end:
        used = take_chunk_end(left);
        break;
      default:
        used = take_body(left);
    }
    if (!used) return std::unexpected(std::move(used.error()));
    left.remove_prefix(*used);
  }
  return all.size() - left.size();
}

Result<> H1Reader::eof() {
  if (state_ == State::until_eof) {
    message_ended();
    owner_.on_end();
    return {};
  }
  if (state_ == State::done || idle()) return {};
  return fail(Reason::HTTP_MALFORMED, "the connection ended in the midst of a message");
}

void H1Reader::next() {
  state_ = State::head;
  interims_ = 0;
}

// Collects a head or trailers up to the empty line. One that comes whole is read where it lies.
H1Reader::Read<size_t> H1Reader::take_block(std::string_view bytes) {
  size_t before = pending_.size();
  std::string_view block = bytes;
  if (before != 0) {
    // No more than may be needed: what follows a head is not ours to keep.
    pending_.append(bytes.substr(0, limits_.head_bytes + 4 - std::min(before, limits_.head_bytes)));
    block = pending_;
  }
  bool request = role_ == Role::requests && state_ == State::head;
  unsigned char first = static_cast<unsigned char>(block[0]);
  if (request && first != '\r' && (kClasses[first] & kToken) == 0)
    return refuse("no HTTP: the first byte is no method's");
  constexpr std::string_view kProtocol = "HTTP/";
  if (role_ == Role::responses && state_ == State::head &&
      !kProtocol.starts_with(block.substr(0, kProtocol.size())))
    return refuse("no HTTP: it does not begin with HTTP/");
  // An empty line where a request should begin is what is left of the one before (RFC 9112 2.2): one is
  // passed over.
  bool empty = block.starts_with("\r\n");
  size_t from = before > 3 ? before - 3 : 0;
  size_t end = block.find("\r\n\r\n", from);
  if (empty && state_ == State::trailers) end = static_cast<size_t>(-2);  // so that end + 4 is past the line
  if (end == std::string_view::npos) {
    for (size_t line = block.find('\n', before); line != std::string_view::npos;
         line = block.find('\n', line + 1))
      if (line == 0 || block[line - 1] != '\r') return refuse("a line ends without CR");
    if (block.size() >= limits_.head_bytes) return refuse("the head exceeds the limit", 431);
    if (request && block.size() > limits_.request_line_bytes &&
        block.substr(0, limits_.request_line_bytes).find('\r', empty ? 2 : 0) == std::string_view::npos)
      return refuse("the request line exceeds the limit", 414);
    if (before == 0) pending_.assign(bytes);
    return bytes.size();
  }
  size_t size = end + 4;
  if (size > limits_.head_bytes) return refuse("the head exceeds the limit", 431);
  // Without the empty line at its end; each line with its CRLF.
  auto read = on_block(block.substr(0, size - 2));
  pending_.clear();
  if (pending_.capacity() > 4096) pending_.shrink_to_fit();
  if (!read) return std::unexpected(std::move(read.error()));
  return size - before;
}

H1Reader::Read<> H1Reader::on_block(std::string_view block) {
  block_.clear();
  if (state_ == State::head) return read_head(block);
  if (auto ok = read_fields(block, true); !ok) return ok;
  if (block_.used != 0) owner_.on_trailers(block_);
  message_ended();
  owner_.on_end();
  return {};
}

H1Reader::Read<> H1Reader::read_head(std::string_view head) {
  if (role_ == Role::requests && head.starts_with("\r\n")) head.remove_prefix(2);
  length_ = -1;
  chunked_ = have_host_ = close_named_ = keep_alive_named_ = upgrade_named_ = false;
  upgrade_.clear();
  size_t end = head.find("\r\n");
  if (end == std::string_view::npos) return refuse("an empty head");
  bool request = role_ == Role::requests;
  if (request && end > limits_.request_line_bytes) return refuse("the request line exceeds the limit", 414);
  auto line = request ? read_request_line(head.substr(0, end)) : read_status_line(head.substr(0, end));
  if (!line) return line;
  if (auto ok = read_fields(head.substr(end + 2), false); !ok) return ok;
  if (auto ok = read_connection(); !ok) return ok;
  return request ? end_of_request() : end_of_response();
}

H1Reader::Read<> H1Reader::read_request_line(std::string_view line) {
  size_t first = line.find(' '), last = line.rfind(' ');
  if (first == std::string_view::npos || first == last) return refuse("the request line has no three parts");
  auto method = line.substr(0, first), target = line.substr(first + 1, last - first - 1);
  if (method.empty() || !all(method, kToken)) return refuse("the method is no token");
  if (auto ok = read_version(line.substr(last + 1)); !ok) return ok;
  block_.method = method;
  return read_target(target);
}

// RFC 9112 3.2: the four forms.
H1Reader::Read<> H1Reader::read_target(std::string_view target) {
  if (target.empty() || !all(target, kTarget)) return refuse("the request target has a byte that no URI has");
  if (block_.method == "CONNECT") {
    if (!all(target, kAuthority)) return refuse("CONNECT is for host:port");
    block_.authority = target;
    return {};
  }
  if (target == "*") {
    if (block_.method != "OPTIONS") return refuse("the target * is for OPTIONS");
    block_.path = "*";
    return {};
  }
  if (target.front() != '/') {
    size_t colon = target.find("://");
    auto scheme = target.substr(0, std::min(colon, target.size()));
    if (colon == std::string_view::npos || (!same_word(scheme, "http") && !same_word(scheme, "https")))
      return refuse("the request target is neither a path nor an http URI");
    target.remove_prefix(colon + 3);
    size_t slash = std::min(target.find_first_of("/?"), target.size());
    if (auto ok = read_host(target.substr(0, slash)); !ok) return ok;
    have_host_ = false;  // of the field, which must agree
    block_.scheme = scheme;
    to_lower(block_.scheme);
    target.remove_prefix(slash);
    if (target.empty() || target.front() == '?') block_.path = "/";
  }
  block_.path += target;
  return {};
}

H1Reader::Read<> H1Reader::read_status_line(std::string_view line) {
  auto digit = [](char byte) { return byte >= '0' && byte <= '9'; };
  if (auto ok = read_version(line.substr(0, 8)); !ok) return ok;
  line.remove_prefix(8);
  bool good = line.size() >= 4 && line[0] == ' ' && std::ranges::all_of(line.substr(1, 3), digit) &&
              line[1] != '0' && (line.size() == 4 || line[4] == ' ') && all(line, kValue);
  if (!good) return refuse("the status line is not HTTP/1.x, a status of three digits, and a reason");
  block_.status = (line[1] - '0') * 100 + (line[2] - '0') * 10 + (line[3] - '0');
  return {};
}

H1Reader::Read<> H1Reader::read_version(std::string_view version) {
  auto digit = [](char byte) { return byte >= '0' && byte <= '9'; };
  bool shaped = version.size() == 8 && version.starts_with("HTTP/") && digit(version[5]) &&
                version[6] == '.' && digit(version[7]);
  if (!shaped) return refuse("no HTTP version");
  if (version != "HTTP/1.1" && version != "HTTP/1.0")
    return refuse("HTTP/1.0 and HTTP/1.1 are served here", 505);
  minor_ = version[7] == '1' ? 1 : 0;
  return {};
}

H1Reader::Read<> H1Reader::read_fields(std::string_view lines, bool trailers) {
  while (!lines.empty()) {
    size_t end = lines.find('\r');
    if (end == std::string_view::npos || end + 1 >= lines.size() || lines[end + 1] != '\n')
      return refuse("a CR without LF");
    if (block_.used == limits_.fields) return refuse("more fields than the limit", 431);
    if (auto ok = read_field(lines.substr(0, end), trailers); !ok) return ok;
    lines.remove_prefix(end + 2);
  }
  return {};
}

H1Reader::Read<> H1Reader::read_field(std::string_view line, bool trailers) {
  size_t colon = line.find(':');
  if (colon == std::string_view::npos || colon == 0) return refuse("a header line without a name");
  auto name = line.substr(0, colon), value = trimmed(line.substr(colon + 1));
  if (!all(name, kToken))
    return refuse("a header's name is no token");  // a folded line, a space before the colon
  if (!all(value, kValue)) return refuse("a header's value has a control character");
  auto& field = block_.add(name, value);
  to_lower(field.first);
  if (!trailers) return read_framing_field(field.first, value);
  if (forbidden_trailer(field.first)) return refuse("a trailer that may not be one: " + field.first);
  return {};
}

H1Reader::Read<> H1Reader::read_framing_field(std::string_view name, std::string_view value) {
  if (name == "content-length") {
    auto digit = [](char byte) { return byte >= '0' && byte <= '9'; };
    if (length_ >= 0) return refuse("more than one Content-Length");
    if (value.empty() || value.size() > kLengthDigits || !std::ranges::all_of(value, digit))
      return refuse("Content-Length is no number");
    length_ = 0;
    for (char byte : value) length_ = length_ * 10 + (byte - '0');
  } else if (name == "transfer-encoding") {
    if (chunked_) return refuse("more than one Transfer-Encoding");
    if (!same_word(value, "chunked")) {
      bool known = value.find(',') == std::string_view::npos && all(value, kToken) && !value.empty();
      return refuse("Transfer-Encoding is not `chunked`", known ? 501 : 400);
    }
    chunked_ = true;
  } else if (name == "host" && role_ == Role::requests) {
    block_.used -= 1;
    if (have_host_) return refuse("more than one Host");
    return read_host(value);
  } else if (name == "upgrade") {
    bool one = all(value, kToken | kAuthority) && !value.empty() && upgrade_.empty();
    upgrade_ = one ? value : ",";  // several to choose from: none is asked for
  }
  return {};
}

H1Reader::Read<> H1Reader::read_host(std::string_view value) {
  auto port = value.rfind(':');
  bool bracket = value.starts_with('[');
  if (bracket && value.find(']') > port) port = std::string_view::npos;
  auto digits = port == std::string_view::npos ? std::string_view() : value.substr(port + 1);
  auto digit = [](char byte) { return byte >= '0' && byte <= '9'; };
  bool good = !value.empty() && all(value, kAuthority) && std::ranges::all_of(digits, digit) &&
              digits.size() <= 5 && port != 0 && (bracket || value.find(':') == port);
  if (!good) return refuse("Host is no host name or address with a port");
  // Of a request for a whole URI, or CONNECT, both must say the same.
  if (!block_.authority.empty() && !std::ranges::equal(value, block_.authority, {}, lower, lower))
    return refuse("Host is not the host of the request target");
  block_.authority = value;
  have_host_ = true;
  return {};
}

// Connection says what concerns this connection only: those fields end here.
H1Reader::Read<> H1Reader::read_connection() {
  std::array<std::string_view, kConnectionNames> names;
  size_t count = 0;
  for (size_t i = 0; i < block_.used; ++i) {
    if (block_.fields[i].first != "connection") continue;
    bool fits = each_element(block_.fields[i].second, [&](std::string_view element) {
      if (same_word(element, "close")) return close_named_ = true;
      if (same_word(element, "keep-alive")) return keep_alive_named_ = true;
      if (same_word(element, "upgrade")) return upgrade_named_ = true;
      if (count == names.size()) return false;
      names[count++] = element;
      return true;
    });
    if (!fits) return refuse("Connection names more fields than anybody needs");
  }
  for (size_t i = 0; i < count; ++i) {
    if (same_word(names[i], "content-length") || same_word(names[i], "host"))
      return refuse("Connection names a field that every reader needs");
  }
  keep_alive_ = !close_named_ && (minor_ == 1 || keep_alive_named_);
  bool any = false;
  for (size_t i = 0; i < block_.used && !any; ++i) any = hop_by_hop(block_.fields[i].first);
  if (!any) return {};
  // The names are views of fields that move: what they name is marked first, by an empty name.
  for (size_t i = 0; i < block_.used; ++i) {
    auto& name = block_.fields[i].first;
    auto named = [&](size_t n) { return same_word(names[n], name); };
    bool drop = name != "connection" && hop_by_hop(name);
    for (size_t n = 0; n < count && !drop; ++n) drop = named(n) && name != "connection";
    if (drop) name.clear();
  }
  block_.remove_if([](std::string_view name) { return name.empty() || name == "connection"; });
  return {};
}

H1Reader::Read<> H1Reader::end_of_request() {
  if (chunked_ && length_ >= 0) return refuse("Transfer-Encoding and Content-Length");
  if (chunked_ && minor_ == 0) return refuse("Transfer-Encoding in HTTP/1.0");
  if (!have_host_ && minor_ == 1) return refuse("no Host");
  bool body = chunked_ || length_ > 0;
  // HTTP/2 by upgrade is not offered (RFC 9113 3.1); what may be asked for needs no body.
  if (upgrade_named_ && minor_ == 1 && !body && block_.method == "GET" && !upgrade_.empty() &&
      upgrade_ != ",") {
    to_lower(upgrade_);
    if (upgrade_ != "h2c" && upgrade_ != "http/2") block_.protocol = upgrade_;
  }
  begin_body(body);
  return {};
}

H1Reader::Read<> H1Reader::end_of_response() {
  int status = block_.status;
  if (chunked_ && (length_ >= 0 || minor_ == 0))
    return refuse("Transfer-Encoding and Content-Length, or HTTP/1.0");
  if (status < 200 && status != 101) {
    if (++interims_ > kInterims) return refuse("interim responses without end");
    length_ = -1;
    owner_.on_head(block_, false);
    return {};
  }
  if (status == 101) block_.protocol = upgrade_;
  to_lower(block_.protocol);
  if (status == 101 || (connect_method_ && status < 300)) {
    tunnel_ = true;
    keep_alive_ = false;
    length_ = -1;
    state_ = State::until_eof;
    owner_.on_head(block_, false);
    return {};
  }
  bool bodiless = head_method_ || status == 204 || status == 304;
  // What such a response calls its body would be read as the next response.
  if (status == 204 && (chunked_ || length_ > 0)) keep_alive_ = false;
  if (bodiless) chunked_ = false, length_ = -1;
  if (!bodiless && !chunked_ && length_ < 0) {
    keep_alive_ = false;
    state_ = State::until_eof;
    owner_.on_head(block_, false);
    return {};
  }
  begin_body(chunked_ || length_ > 0);
  return {};
}

void H1Reader::begin_body(bool has_body) {
  left_ = chunked_ ? 0 : static_cast<uint64_t>(std::max<int64_t>(length_, 0));
  extension_bytes_ = line_size_ = digits_ = 0;
  state_ = !has_body ? State::done : chunked_ ? State::chunk_size : State::body;
  owner_.on_head(block_, !has_body);
}

size_t H1Reader::take_body(std::string_view bytes) {
  size_t size = state_ == State::until_eof ? bytes.size()
                                           : static_cast<size_t>(std::min<uint64_t>(left_, bytes.size()));
  State was = state_;
  owner_.on_body({reinterpret_cast<const uint8_t*>(bytes.data()), size});
  if (was == State::until_eof) return size;
  left_ -= size;
  if (left_ != 0) return size;
  if (was == State::chunk) {
    state_ = State::chunk_end;
  } else {
    message_ended();
    owner_.on_end();
  }
  return size;
}

// RFC 9112 7.1: hexadecimal digits, extensions that nobody needs, CRLF.
H1Reader::Read<size_t> H1Reader::take_chunk_size(std::string_view bytes) {
  for (size_t i = 0; i < bytes.size(); ++i) {
    char byte = bytes[i], low = lower(byte);
    ++line_size_;
    if (after_cr_) {
      if (byte != '\n') return refuse("a chunk's size ends without LF");
      after_cr_ = false;
      if (digits_ == 0) return refuse("a chunk without a size");
      state_ = left_ == 0 ? State::trailers : State::chunk;
      line_size_ = digits_ = 0;
      return i + 1;
    }
    if (byte == '\r') {
      after_cr_ = true;
    } else if (digits_ == line_size_ - 1 && ((byte >= '0' && byte <= '9') || (low >= 'a' && low <= 'f'))) {
      if (++digits_ > kChunkDigits) return refuse("a chunk's size has too many digits");
      left_ = left_ * 16 + static_cast<uint64_t>(byte <= '9' ? byte - '0' : low - 'a' + 10);
    } else if (digits_ == 0 || (digits_ == line_size_ - 1 && byte != ';') ||
               (kClasses[static_cast<unsigned char>(byte)] & kValue) == 0) {
      return refuse("a chunk's size is no hexadecimal number");
    } else if (line_size_ - digits_ > kExtensionBytes || ++extension_bytes_ > kAllExtensionBytes) {
      return refuse("chunk extensions without end");
    }
  }
  return bytes.size();
}

H1Reader::Read<size_t> H1Reader::take_chunk_end(std::string_view bytes) {
  char wanted = after_cr_ ? '\n' : '\r';
  if (bytes[0] != wanted) return refuse("a chunk is longer than its size");
  if (after_cr_) state_ = State::chunk_size;
  after_cr_ = !after_cr_;
  return 1;
}

void H1Reader::message_ended() {
  state_ = State::done;
}

}  // namespace nodemesh::http

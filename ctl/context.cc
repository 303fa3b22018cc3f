#include "ctl/context.h"

#include <ostream>
#include <utility>

#include <fmt/format.h>

namespace nodemesh::ctl {

std::string printable(std::string_view text) {
  std::string out;
  for (unsigned char c : text) {
    if (c >= 0x20 && c < 0x7f) {
      out += static_cast<char>(c);
    } else {
      out += fmt::format("\\x{:02x}", c);
    }
  }
  return out;
}

std::string as_called(std::string_view hint, std::string_view program) {
  static constexpr std::string_view kOurs = "`meshctl";
  std::string out;
  for (size_t at = 0;;) {
    size_t found = hint.find(kOurs, at);
    out += hint.substr(at, found - at);
    if (found == hint.npos) return out;
    out += "`" + std::string(program);
    at = found + kOurs.size();
  }
}

int Context::failed(Exit code, std::string_view what_and_why, std::string_view next) const {
  err << (colour ? "\033[31merror:\033[0m " : "error: ") << printable(what_and_why) << "\n";
  if (!next.empty()) err << "  next: " << printable(as_called(next, program)) << "\n";
  return code;
}

void Context::progress(const std::string& text) {
  if (std::exchange(last_progress, text) != text) err << printable(text) << std::endl;
}

void Context::warn(std::string_view text) {
  ++warnings;
  err << (colour ? "\033[33mwarning:\033[0m " : "warning: ") << printable(text) << "\n";
}

}  // namespace nodemesh::ctl

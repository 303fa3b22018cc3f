#include "ctl/context.h"

#include <ostream>

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

int Context::failed(Exit code, std::string_view what_and_why, std::string_view next) const {
  err << (colour ? "\033[31merror:\033[0m " : "error: ") << printable(what_and_why) << "\n";
  if (!next.empty()) err << "  next: " << printable(next) << "\n";
  return code;
}

void Context::warn(std::string_view text) {
  ++warnings;
  err << (colour ? "\033[33mwarning:\033[0m " : "warning: ") << printable(text) << "\n";
}

}  // namespace nodemesh::ctl

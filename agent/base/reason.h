// Why something was refused: the C++ face of `enum nm_reason` in bpf/abi.h, and the error type of every
// fallible function. Values; any thread.
#pragma once

#include <cstdint>
#include <expected>
#include <string>
#include <string_view>

#include "bpf/abi.h"

namespace nodemesh {

enum class Reason : uint16_t {
#define NM_X(name, text) name,
  NM_REASONS(NM_X)
#undef NM_X
};

// The stable identifier that logs, metrics and replies carry, e.g. "POLICY_DENY".
std::string_view reason_name(Reason reason);
// One sentence for people.
std::string_view reason_text(Reason reason);

struct Error {
  Reason reason = Reason::INTERNAL;
  std::string
      message;  // names the object and the fix; may hold peer-supplied bytes, so escape it before a log line
};

template <class T = void>
using Result = std::expected<T, Error>;

inline std::unexpected<Error> fail(std::string message) {
  return std::unexpected(Error{Reason::INTERNAL, std::move(message)});
}
inline std::unexpected<Error> fail(Reason reason, std::string message) {
  return std::unexpected(Error{reason, std::move(message)});
}
// `what: strerror(errno)`; call it before anything can change errno.
std::unexpected<Error> fail_errno(std::string_view what);

}  // namespace nodemesh

#include "base/reason.h"

#include <cerrno>
#include <cstring>

namespace nodemesh {

std::string_view reason_name(Reason reason) {
  static constexpr std::string_view kNames[] = {
#define NM_X(name, text) #name,
      NM_REASONS(NM_X)
#undef NM_X
  };
  auto index = static_cast<size_t>(reason);
  return index < NM_REASON_COUNT ? kNames[index] : "UNKNOWN";
}

std::string_view reason_text(Reason reason) {
  static constexpr std::string_view kTexts[] = {
#define NM_X(name, text) text,
      NM_REASONS(NM_X)
#undef NM_X
  };
  auto index = static_cast<size_t>(reason);
  return index < NM_REASON_COUNT ? kTexts[index] : "an unknown reason";
}

std::unexpected<Error> fail_errno(std::string_view what) {
  int error = errno;
  return fail(std::string(what) + ": " + std::strerror(error));
}

}  // namespace nodemesh

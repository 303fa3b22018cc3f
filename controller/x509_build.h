// The pieces that every certificate of ours is built of, over OpenSSL. Each function says by false that
// OpenSSL refused; tls::take_openssl_error() tells why. Any thread.
#pragma once

#include <chrono>
#include <string>
#include <vector>

#include "base/clock.h"
#include "tls/openssl.h"

namespace nodemesh::controller {

inline constexpr auto kBackdate = std::chrono::minutes(2);  // clocks of nodes differ

// 127 random bits: unique without a counter on disk, positive, at most the 20 bytes of RFC 5280 4.1.2.2.
bool set_serial(X509* certificate);
bool set_times(X509* certificate, WallClock::time_point from, WallClock::time_point until);
// `value` in OpenSSL's configuration syntax: constants only, never a name from outside.
bool add_extension(X509* certificate, X509* issuer, int nid, const char* value);

struct SubjectNames {
  std::vector<std::string> uris, dns;
};
// Critical, since our leaves have no subject (RFC 5280 4.2.1.6).
bool add_subject_names(X509* certificate, const SubjectNames& names);

}  // namespace nodemesh::controller

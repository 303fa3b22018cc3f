// What nghttp2 calls while a session reads and writes. For h2_session.cc only.
#pragma once

#include <nghttp2/nghttp2.h>

#include <array>
#include <cstdint>

#include "http/h2_session.h"

namespace nodemesh::http {

// Made once per process; the user data of a session made with them is its H2Session.
const nghttp2_session_callbacks* h2_callbacks();
const nghttp2_option* h2_options();
// The read_callback of a stream's data; `source->ptr` is its H2Stream.
ssize_t h2_read(nghttp2_session* session, int32_t id, uint8_t* buffer, size_t size, uint32_t* flags,
                nghttp2_data_source* source, void* user);
std::array<uint8_t, 8> ping_data(H2Ping kind);

}  // namespace nodemesh::http

// Reads one HTTP/1.1 response out of bytes (RFC 9112), strictly: CRLF line ends, one framing, no folding, no
// body that ends with the connection, since its truncation would look like completion. Sans-I/O; hostile
// input; one thread.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/reason.h"

namespace nodemesh::kube {

class H1Response {
 public:
  static constexpr size_t kMaxHead = 60 * 1024;
  static constexpr size_t kMaxFields = 100;

  class Reader {
   public:
    // Names are in lower case. Interim responses (1xx) are not told.
    virtual void on_head(int status, const std::vector<std::pair<std::string, std::string>>& fields) = 0;
    virtual void on_body(std::string_view bytes) = 0;

   protected:
    ~Reader() = default;
  };

  // The reader must outlive the calls.
  explicit H1Response(Reader& reader) : reader_(reader) {}

  // How many of `bytes` belong to the response; all of them unless done() afterwards. An Error says that the
  // connection must be closed.
  Result<size_t> feed(std::string_view bytes);
  bool done() const { return state_ == State::done; }
  bool begun() const { return begun_; }
  // The connection may carry another response.
  bool keep_alive() const { return done() && keep_alive_; }

 private:
  enum class State : uint8_t { status, fields, body, chunk_size, chunk, chunk_end, trailers, done };

  Result<bool> take_line(std::string_view& bytes);
  Result<> on_line();
  Result<> read_status();
  Result<> read_field();
  Result<> end_of_fields();
  Result<> read_framing();
  Result<> read_chunk_size();
  void take_body(std::string_view& bytes);

  Reader& reader_;
  State state_ = State::status;
  std::string line_;
  size_t head_bytes_ = 0;
  int status_ = 0;
  std::vector<std::pair<std::string, std::string>> fields_;
  uint64_t left_ = 0;  // of the body, or of a chunk
  bool begun_ = false, keep_alive_ = true;
};

}  // namespace nodemesh::kube

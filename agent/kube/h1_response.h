// One HTTP/1.1 response of a server that we asked ourselves: what http::H1Reader takes, but for a body that
// ends with the connection, since its truncation would look like completion, and a switch of protocols that
// nobody asked for. Sans-I/O; hostile input; one thread.
#pragma once

#include <string>
#include <string_view>

#include "base/reason.h"
#include "http/h1_reader.h"

namespace nodemesh::kube {

class H1Response final : private http::H1Owner {
 public:
  class Reader {
   public:
    virtual void on_head(
        const http::HeaderBlock& head) = 0;  // of the final response; interim ones are not told
    virtual void on_body(std::string_view bytes) = 0;

   protected:
    ~Reader() = default;
  };

  // The reader must outlive the calls.
  explicit H1Response(Reader& reader) : reader_(reader) {}

  // How many of `bytes` belong to the response; all of them unless done() afterwards. An Error says that the
  // connection must be closed.
  Result<size_t> feed(std::string_view bytes);
  bool done() const { return response_.done(); }
  bool begun() const { return begun_; }
  // The connection may carry another response.
  bool keep_alive() const { return done() && response_.keep_alive(); }

 private:
  void on_head(http::HeaderBlock& head, bool end) override;
  void on_body(std::span<const uint8_t> bytes) override;
  void on_trailers(http::HeaderBlock&) override {}
  void on_end() override {}

  Reader& reader_;
  const http::H1Limits limits_;
  http::H1Reader response_{http::H1Reader::Role::responses, *this, limits_};
  std::string_view refused_;
  bool begun_ = false;
};

}  // namespace nodemesh::kube

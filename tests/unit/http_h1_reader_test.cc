#include <string>
#include <string_view>
#include <vector>

#include <doctest/doctest.h>
#include <fmt/format.h>

#include "http/h1_reader.h"

using namespace nodemesh;
using namespace nodemesh::http;

namespace {

const H1Limits kLimits;

std::string text_of(const HeaderBlock& block) {
  std::string text;
  for (size_t i = 0; i < block.used; ++i) text += block.fields[i].first + "=" + block.fields[i].second + ";";
  return text;
}

struct Heard final : H1Owner {
  void on_head(HeaderBlock& head, bool end) override {
    if (head.status != 0) all += fmt::format("{}", head.status);
    if (!head.method.empty())
      all += fmt::format("{} {}{}|{}", head.method, head.scheme, head.authority, head.path);
    if (!head.protocol.empty()) all += " ^" + head.protocol;
    all += " " + text_of(head) + (end ? " end\n" : "\n");
  }
  void on_body(std::span<const uint8_t> bytes) override {
    body.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  }
  void on_trailers(HeaderBlock& trailers) override { all += "trailers " + text_of(trailers) + "\n"; }
  void on_end() override { all += "end\n"; }
  std::string all, body;
};

struct Outcome {
  std::string heard, body;
  int refused = 0;  // the status; 0: not refused
  std::string why;
  bool done = false, keep_alive = false;
  size_t used = 0;
  bool operator==(const Outcome&) const = default;
};

// What comes of `text` in pieces of `step`, up to the end of the first message, or with `eof` of the
// connection.
Outcome read(H1Reader::Role role, std::string_view text, size_t step, std::string_view method = "GET",
             bool eof = false) {
  Heard heard;
  H1Reader reader(role, heard, kLimits);
  if (role == H1Reader::Role::responses) reader.expect(method);
  Outcome outcome;
  for (size_t at = 0; at < text.size() && !reader.done();) {
    auto piece = text.substr(at, step);
    auto used = reader.feed({reinterpret_cast<const uint8_t*>(piece.data()), piece.size()});
    if (!used) {
      outcome.refused = used.error().status;
      outcome.why = used.error().error.message;
      break;
    }
    at += *used;
    outcome.used = at;
  }
  if (eof && outcome.refused == 0) {
    if (auto ended = reader.eof(); !ended) outcome.why = ended.error().message;
  }
  outcome.heard = heard.all;
  outcome.body = heard.body;
  outcome.done = reader.done();
  outcome.keep_alive = reader.keep_alive();
  return outcome;
}

// The same whole and in pieces.
Outcome request(std::string_view text) {
  auto whole = read(H1Reader::Role::requests, text, text.size());
  auto bytes = read(H1Reader::Role::requests, text, 1);
  CHECK(bytes.heard == whole.heard);
  CHECK(bytes.body == whole.body);
  CHECK(bytes.refused == whole.refused);
  return whole;
}

Outcome response(std::string_view text, std::string_view method = "GET", bool eof = false) {
  auto whole = read(H1Reader::Role::responses, text, text.size(), method, eof);
  auto bytes = read(H1Reader::Role::responses, text, 1, method, eof);
  CHECK(bytes.heard == whole.heard);
  CHECK(bytes.body == whole.body);
  CHECK(bytes.refused == whole.refused);
  CHECK(bytes.why == whole.why);
  return whole;
}

}  // namespace

TEST_CASE("a request is read with its names in lower case and its Host as authority") {
  auto got =
      request("GET /a?b=c HTTP/1.1\r\nHost: Shop.example:80\r\nUser-Agent: curl \t\r\nX: \r\n\r\nrest");
  CHECK(got.heard == "GET Shop.example:80|/a?b=c user-agent=curl;x=; end\n");
  CHECK(got.done);
  CHECK(got.keep_alive);
  CHECK(got.used ==
        std::string_view("GET /a?b=c HTTP/1.1\r\nHost: Shop.example:80\r\nUser-Agent: curl \t\r\nX: \r\n\r\n")
            .size());
}

TEST_CASE("what concerns two neighbours only ends at the reader, with what Connection names") {
  auto got = request(
      "GET / HTTP/1.1\r\nHost: h\r\nConnection: close, X-Secret ,te\r\nX-Secret: 1\r\nTE: trailers\r\n"
      "Keep-Alive: 5\r\nProxy-Connection: x\r\nAccept: *\r\n\r\n");
  CHECK(got.heard == "GET h|/ accept=*; end\n");
  CHECK_FALSE(got.keep_alive);
}

TEST_CASE("a field that every reader needs is not taken away by Connection") {
  CHECK(request("POST / HTTP/1.1\r\nHost: h\r\nConnection: content-length\r\nContent-Length: 3\r\n\r\nabc")
            .refused == 400);
  CHECK(request("GET / HTTP/1.1\r\nHost: h\r\nConnection: Host\r\n\r\n").refused == 400);
}

TEST_CASE("bodies are framed by Content-Length or by chunks, and trailers follow chunks") {
  auto length = request("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhelloGET");
  CHECK(length.heard == "POST h|/ content-length=5;\nend\n");
  CHECK(length.body == "hello");
  auto chunks = request(
      "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: Chunked\r\n\r\n"
      "5\r\nhello\r\n00A;name=\"v\"\r\n0123456789\r\n0\r\nX-Sum: 7\r\n\r\nGET");
  CHECK(chunks.heard == "POST h|/ \ntrailers x-sum=7;\nend\n");
  CHECK(chunks.body == "hello0123456789");
  CHECK(request("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n").heard ==
        "POST h|/ \nend\n");
}

TEST_CASE("one empty line before a request is passed over") {
  CHECK(request("\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n").heard == "GET h|/  end\n");
  CHECK(request("\r\n\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n").refused == 400);
}

TEST_CASE("a request for a whole URI names its host twice and alike") {
  CHECK(request("GET http://H:80/p?q HTTP/1.1\r\nHost: h:80\r\n\r\n").heard == "GET httph:80|/p?q  end\n");
  CHECK(request("GET http://h?q HTTP/1.1\r\nHost: h\r\n\r\n").heard == "GET httph|/?q  end\n");
  CHECK(request("GET http://other/ HTTP/1.1\r\nHost: h\r\n\r\n").refused == 400);
  CHECK(request("GET ftp://h/ HTTP/1.1\r\nHost: h\r\n\r\n").refused == 400);
  CHECK(request("OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n").heard == "OPTIONS h|*  end\n");
  CHECK(request("GET * HTTP/1.1\r\nHost: h\r\n\r\n").refused == 400);
  CHECK(request("CONNECT h:443 HTTP/1.1\r\nHost: h:443\r\n\r\n").heard == "CONNECT h:443|  end\n");
}

TEST_CASE("HTTP/1.0 needs no Host and ends the connection unless asked not to") {
  auto got = request("GET / HTTP/1.0\r\n\r\n");
  CHECK(got.heard == "GET |/  end\n");
  CHECK_FALSE(got.keep_alive);
  CHECK(request("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").keep_alive);
}

TEST_CASE("an upgrade is told of only where it is asked for as RFC 9110 says, without a body") {
  CHECK(request("GET /ws HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: WebSocket\r\n\r\n").heard ==
        "GET h|/ws ^websocket  end\n");
  for (auto text :
       {"GET / HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: h2c\r\nHTTP2-Settings: x\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: websocket, h2c\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: a\r\nUpgrade: b\r\n\r\n"}) {
    CAPTURE(text);
    CHECK(request(text).heard == "GET h|/  end\n");
  }
}

TEST_CASE("what two readers could take differently is refused") {
  auto post = [](std::string fields, std::string body = "") {
    return "POST / HTTP/1.1\r\nHost: h\r\n" + fields + "\r\n" + body;
  };
  std::vector<std::pair<std::string, int>> cases = {
      {post("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"), 400},
      {post("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", "0\r\n\r\n"), 400},
      {post("Content-Length: 5\r\nContent-Length: 5\r\n", "hello"), 400},
      {post("Content-Length: 5, 5\r\n", "hello"), 400},
      {post("Content-Length: +5\r\n", "hello"), 400},
      {post("Content-Length: -1\r\n"), 400},
      {post("Content-Length: 0x5\r\n", "hello"), 400},
      {post("Content-Length:\r\n"), 400},
      {post("Content-Length: 99999999999999999999\r\n"), 400},
      {post("Transfer-Encoding: gzip\r\n"), 501},
      {post("Transfer-Encoding: gzip, chunked\r\n"), 400},
      {post("Transfer-Encoding: chunked, chunked\r\n"), 400},
      {post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"), 400},
      {post("Transfer-Encoding: \x0b"
            "chunked\r\n"),
       400},
      {post("Transfer-Encoding: xchunked\r\n"), 501},
      {post("Transfer-Encoding : chunked\r\n"), 400},
      {post("Transfer-Encoding:\r\n chunked\r\n"), 400},
      {post(" X: folded first\r\n"), 400},
      {post("X: 1\r\n folded\r\n"), 400},
      {post(": nameless\r\n"), 400},
      {post("X\r\n"), 400},
      {post("X : 1\r\n"), 400},
      {post("X\t: 1\r\n"), 400},
      {post("X(: 1\r\n"), 400},
      {post("X: a\rb\r\n"), 400},
      {post(std::string("X: a\0b\r\n", 8)), 400},
      {post("X: a\x7f\r\n"), 400},
      {"POST / HTTP/1.1\nHost: h\n\n", 400},
      {"POST / HTTP/1.1\r\nHost: h\nX: 1\r\n\r\n", 400},
      {"GET / HTTP/1.1\r\nHost: h\r\nHost: h\r\n\r\n", 400},
      {"GET / HTTP/1.1\r\nHost: h, i\r\n\r\n", 400},
      {"GET / HTTP/1.1\r\nHost: user@h\r\n\r\n", 400},
      {"GET / HTTP/1.1\r\nHost: h/x\r\n\r\n", 400},
      {"GET / HTTP/1.1\r\nHost: h:8a\r\n\r\n", 400},
      {"GET / HTTP/1.1\r\nHost: a:1:2\r\n\r\n", 400},
      {"GET / HTTP/1.1\r\nHost: :80\r\n\r\n", 400},
      {"GET / HTTP/1.1\r\nHost:\r\n\r\n", 400},
      {"GET / HTTP/1.1\r\n\r\n", 400},
      {"GET  / HTTP/1.1\r\nHost: h\r\n\r\n", 400},
      {"GET /a b HTTP/1.1\r\nHost: h\r\n\r\n", 400},
      {"GET /#f HTTP/1.1\r\nHost: h\r\n\r\n", 400},
      {"GET /\x80 HTTP/1.1\r\nHost: h\r\n\r\n", 400},
      {"GET /\tHTTP/1.1\r\nHost: h\r\n\r\n", 400},
      {"GET /\r\nHost: h\r\n\r\n", 400},
      {"GE(T / HTTP/1.1\r\nHost: h\r\n\r\n", 400},
      {"GET / http/1.1\r\nHost: h\r\n\r\n", 400},
      {"GET / HTTP/1.1 \r\nHost: h\r\n\r\n", 400},
      {"GET / HTTP/11\r\nHost: h\r\n\r\n", 400},
      {"GET / HTTP/1.2\r\nHost: h\r\n\r\n", 505},
      {"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505},
      {"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400},
      {"\x16\x03\x01\x02", 400},
  };
  for (const auto& [text, status] : cases) {
    CAPTURE(text);
    auto got = request(text);
    CHECK(got.refused == status);
    CHECK(got.heard.empty());
  }
}

TEST_CASE("chunks are read strictly") {
  auto chunked = [](std::string_view body) {
    return request("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n" + std::string(body));
  };
  std::string endless = "1;" + std::string(300, 'x') + "\r\n";
  for (std::string_view body :
       {std::string_view("\r\n"), std::string_view("g\r\n"), std::string_view("-1\r\n"),
        std::string_view("0x1\r\n"), std::string_view("1 \r\n"), std::string_view(" 1\r\n"),
        std::string_view("1\n"), std::string_view("1\r\r"), std::string_view("1\r\nab"),
        std::string_view("1\r\na\n"), std::string_view("1\r\na\rb"),
        std::string_view("10000000000000000\r\n"), std::string_view("1;\x01\r\n"), std::string_view(endless),
        std::string_view("0\r\nContent-Length: 3\r\n\r\n"),
        std::string_view("0\r\nTransfer-Encoding: chunked\r\n\r\n"), std::string_view("0\r\nHost: i\r\n\r\n"),
        std::string_view("0\r\n X: 1\r\n\r\n")}) {
    CAPTURE(body);
    CHECK(chunked(body).refused == 400);
  }
  std::string many;
  for (int i = 0; i < 100; ++i) many += "1;" + std::string(250, 'x') + "\r\na\r\n";
  CHECK(chunked(many).why == "chunk extensions without end");
}

TEST_CASE("a head has a limit of bytes, of fields, and of its first line") {
  std::string fields;
  for (int i = 0; i < 100; ++i) fields += fmt::format("x{}: 1\r\n", i);
  CHECK(request("GET / HTTP/1.0\r\n" + fields + "\r\n").refused == 0);
  CHECK(request("GET / HTTP/1.0\r\n" + fields + "y: 1\r\n\r\n").refused == 431);
  CHECK(request("GET / HTTP/1.0\r\nx: " + std::string(61 * 1024, 'a') + "\r\n\r\n").refused == 431);
  CHECK(request("GET /" + std::string(17 * 1024, 'a') + " HTTP/1.0\r\n\r\n").refused == 414);
  CHECK(request("GET / HTTP/1.0\r\nx: " + std::string(59 * 1024, 'a') + "\r\n\r\n").refused == 0);
  std::string trailers = "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n";
  CHECK(request(trailers + fields + "y: 1\r\n\r\n").refused == 431);
}

TEST_CASE("a response's body is what its status and the request's method say") {
  CHECK(response("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhiHTTP").body == "hi");
  auto head = response("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n", "HEAD");
  CHECK(head.heard == "200 content-length=2; end\n");
  CHECK(head.keep_alive);
  CHECK(response("HTTP/1.1 304 Not Modified\r\nContent-Length: 2\r\n\r\n").heard ==
        "304 content-length=2; end\n");
  CHECK(response("HTTP/1.1 204\r\n\r\n").heard == "204  end\n");
  CHECK_FALSE(response("HTTP/1.1 204 No\r\nContent-Length: 2\r\n\r\nhi").keep_alive);
  auto chunked =
      response("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\ngrpc-status: 0\r\n\r\n");
  CHECK(chunked.heard == "200 \ntrailers grpc-status=0;\nend\n");
}

TEST_CASE("interim responses come before the final one, and not for ever") {
  auto got = response(
      "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 204 No\r\n\r\n");
  CHECK(got.heard == "100 \n103 link=x;\n204  end\n");
  std::string flood;
  for (int i = 0; i < 40; ++i) flood += "HTTP/1.1 100 Continue\r\n\r\n";
  CHECK(response(flood).why == "interim responses without end");
}

TEST_CASE(
    "a response without framing ends with the connection; one with framing that ends early is truncated") {
  auto got = response("HTTP/1.1 200 OK\r\n\r\nall of it", "GET", true);
  CHECK(got.body == "all of it");
  CHECK(got.heard == "200 \nend\n");
  CHECK_FALSE(got.keep_alive);
  CHECK(response("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhi", "GET", true).why ==
        "the connection ended in the midst of a message");
  CHECK(response("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n", "GET", true).why ==
        "the connection ended in the midst of a message");
  CHECK(response("HTTP/1.1 20", "GET", true).why == "the connection ended in the midst of a message");
}

TEST_CASE("after 101, or 2xx to CONNECT, all bytes are body") {
  auto upgraded = response(
      "HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n\x01\x02", "GET", true);
  CHECK(upgraded.heard == "101 ^websocket \nend\n");
  CHECK(upgraded.body == "\x01\x02");
  CHECK(response("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nabc", "CONNECT", true).body == "abc");
}

TEST_CASE("a response that is not one is refused") {
  for (auto text : {"HTTP/1.1 2000 OK\r\n\r\n", "HTTP/1.1 20 OK\r\n\r\n", "HTTP/1.1  200 OK\r\n\r\n",
                    "HTTP/1.1 099 No\r\n\r\n", "ICY 200 OK\r\n\r\n", "HTTP/1.1 200 O\x01\r\n\r\n",
                    "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
                    "\r\nHTTP/1.1 200 OK\r\n\r\n"}) {
    CAPTURE(text);
    CHECK(response(text).refused != 0);
  }
  CHECK(response("HTTP/2.0 200 OK\r\n\r\n").refused == 505);
}

TEST_CASE("messages follow one another on a connection") {
  Heard heard;
  H1Reader reader(H1Reader::Role::requests, heard, kLimits);
  std::string text =
      "POST /1 HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\nhiGET /2 HTTP/1.1\r\nHost: h\r\n\r\n";
  std::span<const uint8_t> bytes(reinterpret_cast<const uint8_t*>(text.data()), text.size());
  auto first = reader.feed(bytes);
  REQUIRE(first);
  REQUIRE(reader.done());
  CHECK(heard.all == "POST h|/1 content-length=2;\nend\n");
  reader.next();
  CHECK(reader.idle());
  REQUIRE(reader.feed(bytes.subspan(*first)) == bytes.size() - *first);
  CHECK(heard.all.ends_with("GET h|/2  end\n"));
  reader.next();
  CHECK(reader.eof());
}

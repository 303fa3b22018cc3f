#include <doctest/doctest.h>

#include "admin/http_request.h"

using nodemesh::admin::Request;
using nodemesh::admin::RequestParser;
using Status = RequestParser::Status;

namespace {

int refused(std::string_view bytes) {
  RequestParser parser;
  Request request;
  parser.feed(bytes);
  return parser.next(request) == Status::bad ? parser.status() : 0;
}

}  // namespace

TEST_CASE("a request that comes byte by byte is taken when its last byte is there") {
  std::string_view bytes = "GET /metrics?a=b HTTP/1.1\r\nHost: node:15020\r\nAccept: */*\r\n\r\n";
  RequestParser parser;
  Request request;
  for (size_t i = 0; i < bytes.size(); ++i) {
    CHECK(parser.next(request) == Status::need_more);
    parser.feed(bytes.substr(i, 1));
  }
  REQUIRE(parser.next(request) == Status::ready);
  CHECK(request.method == "GET");
  CHECK(request.path == "/metrics");
  CHECK(request.query == "a=b");
  CHECK(request.host == "node:15020");
  CHECK(request.keep_alive);
  CHECK(parser.idle());
}

TEST_CASE("empty lines before a request are ignored, also when they come in pieces") {
  RequestParser parser;
  Request request;
  for (auto piece : {"\r\n\r", "\n", "\r", "\nGET /a HTTP/1.0\r\n\r\n"}) {
    CHECK(parser.next(request) == Status::need_more);
    parser.feed(piece);
  }
  CHECK(parser.next(request) == Status::ready);
}

TEST_CASE("pipelined requests come out one after the other, bodies skipped") {
  RequestParser parser;
  Request request;
  parser.feed(
      "POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhelloGET /b HTTP/1.1\r\nHost: "
      "x\r\nConnection: close\r\n\r\n");
  REQUIRE(parser.next(request) == Status::ready);
  CHECK(request.path == "/a");
  REQUIRE(parser.next(request) == Status::ready);
  CHECK(request.path == "/b");
  CHECK_FALSE(request.keep_alive);
  CHECK(parser.next(request) == Status::need_more);
}

TEST_CASE("a head beyond 8 KiB is refused, whether or not it ever ends") {
  std::string endless = "GET / HTTP/1.1\r\nHost: x\r\nX: " + std::string(9000, 'a');
  CHECK(refused(endless) == 431);
  CHECK(refused(endless + "\r\n\r\n") == 431);
  std::string many = "GET / HTTP/1.1\r\nHost: x\r\n";
  while (many.size() < 8192) many += "A: b\r\n";
  CHECK(refused(many + "\r\n") == 431);
}

TEST_CASE("whatever two readers could take differently is refused") {
  auto with = [](std::string_view field) {
    return "GET / HTTP/1.1\r\nHost: x\r\n" + std::string(field) + "\r\n\r\n";
  };
  CHECK(refused(with("A: b")) == 0);
  CHECK(refused("GET / HTTP/1.1\r\n\r\n") == 400);
  CHECK(refused(with("Host: y")) == 400);
  CHECK(refused(with("Content-Length: 1\r\nContent-Length: 1")) == 400);
  CHECK(refused(with("Content-Length: +1")) == 400);
  CHECK(refused(with("Content-Length: -1")) == 400);
  CHECK(refused(with("Content-Length: 0x1")) == 400);
  CHECK(refused(with("Content-Length:")) == 400);
  CHECK(refused(with("Content-Length: 65537")) == 413);
  CHECK(refused(with("Content-Length: 99999999999999999999999")) == 413);
  CHECK(refused(with("Transfer-Encoding: chunked")) == 501);
  CHECK(refused(with("Expect: 100-continue")) == 417);
  CHECK(refused(with(" folded: x")) == 400);
  CHECK(refused(with("space : x")) == 400);
  CHECK(refused(with("nocolon")) == 400);
  CHECK(refused(with(": empty")) == 400);
  CHECK(refused(with("A: b\nC: d")) == 400);
  CHECK(refused(with("A: b\rC: d")) == 400);
  CHECK(refused(with(std::string_view("A: \0", 4))) == 400);
  CHECK(refused("GET / HTTP/2.0\r\nHost: x\r\n\r\n") == 505);
  CHECK(refused("GET  / HTTP/1.1\r\nHost: x\r\n\r\n") == 400);
  CHECK(refused("GET /\r\nHost: x\r\n\r\n") == 400);
  CHECK(refused("GET http://x/ HTTP/1.1\r\nHost: x\r\n\r\n") == 400);
  CHECK(refused("GET /a\tb HTTP/1.1\r\nHost: x\r\n\r\n") == 400);
  CHECK(refused("G@T / HTTP/1.1\r\nHost: x\r\n\r\n") == 400);
  CHECK(refused("DELETE / HTTP/1.1\r\nHost: x\r\n\r\n") == 405);
  CHECK(refused("\x16\x03\x01\x02\r\n\r\n") == 400);
}

TEST_CASE("HTTP/1.0 needs no host and closes unless it asks to stay") {
  RequestParser parser;
  Request request;
  parser.feed("GET / HTTP/1.0\r\n\r\nGET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n");
  REQUIRE(parser.next(request) == Status::ready);
  CHECK_FALSE(request.keep_alive);
  REQUIRE(parser.next(request) == Status::ready);
  CHECK(request.keep_alive);
}

TEST_CASE("query parameters are decoded, and a broken encoding is no value") {
  Request request;
  request.query = "component=a%2Fb+c&level=&bad=%zz&cut=%2";
  CHECK(request.parameter("component") == "a/b c");
  CHECK(request.parameter("level") == "");
  CHECK_FALSE(request.parameter("bad"));
  CHECK_FALSE(request.parameter("cut"));
  CHECK_FALSE(request.parameter("comp"));
}

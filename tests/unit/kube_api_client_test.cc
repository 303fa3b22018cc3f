// Requests to an API server over TLS: both protocols, every way in which a server can fail.
#include "kube_fixtures.h"

using namespace nodemesh;
using namespace nodemesh::kube;
using namespace nodemesh::test;

namespace {

struct Reader final : ApiStream {
  void on_head(const ApiHead& head) override { status = head.status; }
  void on_bytes(std::string_view bytes) override { body += bytes; }
  void on_end(Result<> how) override { end = std::move(how); }
  int status = 0;
  std::string body;
  std::optional<Result<>> end;
};

template <class Run>
void with_both(Run run) {
  for (bool h2 : {true, false}) {
    CAPTURE(h2);
    ApiFixture at;
    at.serve(h2);
    at.connect();
    run(at);
  }
}

}  // namespace

TEST_CASE("a request carries verb, path, token, accept and body, and its answer comes back whole") {
  with_both([](ApiFixture& at) {
    std::string large(300'000, 'x');
    at.server->handle = [&](ApiServer::Call& call) { call.answer(201, large); };
    auto answer = at.ask({.verb = Verb::patch,
                          .path = "/api/v1/nodes/a?x=1",
                          .body = large,
                          .content_type = "application/merge-patch+json",
                          .accept = "application/json;as=Table"});
    REQUIRE(answer);
    CHECK(answer->status == 201);
    CHECK(answer->body == large);
    auto& call = at.server->last();
    CHECK(call.method == "PATCH");
    CHECK(call.target == "/api/v1/nodes/a?x=1");
    CHECK(call.authorization == "Bearer the-token");
    CHECK(call.accept == "application/json;as=Table");
    CHECK(call.content_type == "application/merge-patch+json");
    CHECK(call.body == large);
  });
}

TEST_CASE("any status is an answer, with Retry-After where the server says so") {
  with_both([](ApiFixture& at) {
    at.server->handle = [&](ApiServer::Call& call) { call.answer(429, "slow down", {{"retry-after", "7"}}); };
    auto answer = at.get("/api");
    REQUIRE(answer);
    CHECK(answer->status == 429);
    CHECK(answer->retry_after == seconds(7));
  });
}

TEST_CASE(
    "many requests at once share one HTTP/2 connection, and go on connections of their own with HTTP/1.1") {
  for (bool h2 : {true, false}) {
    CAPTURE(h2);
    ApiFixture at;
    at.serve(h2);
    at.connect();
    at.server->handle = [](ApiServer::Call&) {};
    size_t answered = 0;
    for (int i = 0; i < 10; ++i)
      at.client->request({.path = "/api/" + std::to_string(i)}, [&](Result<ApiAnswer> answer) {
        answered += answer && answer->body == "ok" ? 1 : 0;
      });
    at.turn_until([&] { return at.server->calls().size() == 10; });
    CHECK(at.server->accepted == (h2 ? 1 : 10));
    for (auto& call : at.server->calls()) call->answer(200, "ok");
    at.turn_until([&] { return answered == 10; });
    at.server->handle = [](ApiServer::Call& call) { call.answer(200, "again"); };
    CHECK(at.get("/again").value_or(ApiAnswer{}).body == "again");
    CHECK(at.server->accepted == (h2 ? 1 : 10));
  }
}

TEST_CASE("a stream brings its bytes as they come and tells its end; one that is cut is not complete") {
  with_both([](ApiFixture& at) {
    at.server->handle = [](ApiServer::Call& call) {
      call.start(200);
      call.send("one\n");
    };
    Reader reader, other;
    at.client->stream({.path = "/watch"}, reader);
    at.turn_until([&] { return reader.body == "one\n"; });
    CHECK(reader.status == 200);
    at.server->last().send("two\n");
    at.turn_until([&] { return reader.body == "one\ntwo\n"; });
    CHECK_FALSE(reader.end);
    at.server->last().end();
    at.turn_until([&] { return reader.end.has_value(); });
    CHECK(reader.end->has_value());
    at.client->stream({.path = "/watch"}, other);
    at.turn_until([&] { return !other.body.empty(); });
    at.server->last().cut();
    at.turn_until([&] { return other.end.has_value(); });
    CHECK_FALSE(other.end->has_value());
  });
}

TEST_CASE("a cancelled call is heard of no more, and the server sees it go") {
  with_both([](ApiFixture& at) {
    at.server->handle = [](ApiServer::Call& call) {
      call.start(200);
      call.send("one\n");
    };
    Reader reader;
    auto id = at.client->stream({.path = "/watch"}, reader);
    at.turn_until([&] { return !reader.body.empty(); });
    CHECK(at.client->last_contact(id).has_value());
    at.client->cancel(id);
    at.turn_until([&] { return !at.server->last().open; });
    CHECK_FALSE(reader.end);
    CHECK_FALSE(at.client->last_contact(id).has_value());
  });
}

TEST_CASE("a reader may cancel its own call and make others while it is called") {
  with_both([](ApiFixture& at) {
    struct Turncoat final : ApiStream {
      explicit Turncoat(ApiClient& c) : client(c) {}
      void on_head(const ApiHead&) override {}
      void on_bytes(std::string_view) override {
        ++calls;
        client.cancel(id);
        client.request({.path = "/other"}, [this](Result<ApiAnswer> answer) { other = answer.has_value(); });
      }
      void on_end(Result<>) override { ++calls; }
      ApiClient& client;
      ApiClient::CallId id = 0;
      int calls = 0;
      bool other = false;
    };
    at.server->handle = [](ApiServer::Call& call) {
      if (call.has("other")) return call.answer(200, "");
      call.start(200);
      call.send("one");
      call.send("two");
      call.end();
    };
    Turncoat reader(*at.client);
    reader.id = at.client->stream({.path = "/watch"}, reader);
    at.turn_until([&] { return reader.other; });
    CHECK(reader.calls == 1);
  });
}

TEST_CASE("a token that the server does not take is read anew and the request asked once more") {
  with_both([](ApiFixture& at) {
    TempDir dir;
    auto with = at.access();
    with.token = {.file = dir.write("token", "old")};
    at.connect(with);
    at.server->handle = [&](ApiServer::Call& call) {
      bool fresh = call.authorization == "Bearer new";
      if (!fresh) dir.write("token", "new");
      call.answer(fresh ? 200 : 401, "");
    };
    auto answer = at.get("/api");
    REQUIRE(answer);
    CHECK(answer->status == 200);
    CHECK(at.server->calls().size() == 2);
    at.server->handle = [&](ApiServer::Call& call) { call.answer(401, ""); };
    CHECK(at.get("/api").value_or(ApiAnswer{}).status == 401);  // the same token again: no use to ask
    CHECK(at.server->calls().size() == 3);
  });
}

TEST_CASE("a server that does not answer in time fails the call, and the next one is served") {
  with_both([](ApiFixture& at) {
    at.server->handle = [](ApiServer::Call&) {};
    auto answer = at.ask({.path = "/slow", .timeout = milliseconds(100)});
    REQUIRE_FALSE(answer);
    CHECK(answer.error().message.find("no answer") != std::string::npos);
    at.server->handle = [](ApiServer::Call& call) { call.answer(200, "ok"); };
    CHECK(at.get("/fast").has_value());
  });
}

TEST_CASE("a stream that its server never ends is taken for dead when its time is over") {
  with_both([](ApiFixture& at) {
    at.server->handle = [](ApiServer::Call& call) { call.start(200); };
    Reader reader;
    at.client->stream({.path = "/watch", .stream_limit = milliseconds(100)}, reader);
    at.turn_until([&] { return reader.end.has_value(); });
    CHECK(reader.status == 200);
    CHECK_FALSE(reader.end->has_value());
  });
}

TEST_CASE("a half-open HTTP/2 connection is noticed by PING, and its calls end") {
  ApiFixture at;
  at.serve(true);
  at.connect({.ping_interval = milliseconds(100), .ping_timeout = milliseconds(100)});
  at.server->handle = [](ApiServer::Call& call) { call.start(200); };
  Reader reader;
  auto id = at.client->stream({.path = "/watch"}, reader);
  at.turn_until([&] { return reader.status == 200; });
  auto first = *at.client->last_contact(id);
  at.turn_until([&] { return *at.client->last_contact(id) > first; });  // PINGs are contact
  CHECK_FALSE(reader.end);
  at.server->freeze();
  at.turn_until([&] { return reader.end.has_value(); });
  CHECK(reader.end->error().message.find("PING") != std::string::npos);
}

TEST_CASE("an answer over the limit is refused, and costs that call alone") {
  with_both([](ApiFixture& at) {
    at.server->handle = [](ApiServer::Call& call) {
      call.answer(200, std::string(call.has("big") ? 5000 : 10, 'x'));
    };
    auto answer = at.ask({.path = "/big", .max_body = 1000});
    REQUIRE_FALSE(answer);
    CHECK(answer.error().reason == Reason::OVER_LIMIT);
    CHECK(at.get("/small").has_value());
  });
}

TEST_CASE("HTTP/1.1: what no server may send ends the call with a sentence") {
  for (auto text :
       {"HTTP/1.1 200 OK\r\n\r\n", "rubbish\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nabc"}) {
    CAPTURE(text);
    ApiFixture at;
    at.serve(false);
    at.connect();
    at.server->handle = [&](ApiServer::Call& call) {
      call.raw(text);
      call.cut();
    };
    CHECK_FALSE(at.get("/api").has_value());
  }
}

TEST_CASE("HTTP/1.1: a kept connection that the server closes just then costs a GET nothing") {
  ApiFixture at;
  at.serve(false);
  at.connect();
  at.server->handle = [](ApiServer::Call& call) { call.answer(200, "ok"); };
  REQUIRE(at.get("/one"));
  at.server->handle = [](ApiServer::Call& call) { call.number == 2 ? call.cut() : call.answer(200, "ok"); };
  CHECK(at.get("/two").has_value());
  CHECK(at.server->accepted == 2);
}

TEST_CASE("after GOAWAY open streams go on and new requests take a new connection") {
  ApiFixture at;
  at.serve(true);
  at.connect();
  at.server->handle = [](ApiServer::Call& call) {
    call.has("watch") ? call.start(200) : call.answer(200, "ok");
  };
  Reader reader;
  at.client->stream({.path = "/watch"}, reader);
  at.turn_until([&] { return reader.status == 200; });
  auto& watch = at.server->last();
  at.server->go_away();
  REQUIRE(at.get("/other"));
  CHECK(at.server->accepted == 2);
  watch.send("still here");
  at.turn_until([&] { return reader.body == "still here"; });
}

TEST_CASE("a server that is not there, or is not who it should be, is refused with a sentence") {
  ApiFixture at;
  at.serve(true);
  at.server->handle = [](ApiServer::Call& call) { call.answer(200, ""); };
  SUBCASE("another authority") {
    auto with = at.access();
    TestCa stranger("stranger");
    with.roots.text = stranger.root_pem();
    at.connect(with);
    auto answer = at.get("/api");
    REQUIRE_FALSE(answer);
    CHECK(answer.error().message.find("certificate is not accepted") != std::string::npos);
    CHECK(answer.error().message.find("the test") != std::string::npos);
  }
  SUBCASE("another name") {
    auto with = at.access();
    with.server_name = "other";
    at.connect(with);
    auto answer = at.get("/api");
    REQUIRE_FALSE(answer);
    CHECK(answer.error().message.find("tls-server-name") != std::string::npos);
  }
  SUBCASE("another address") {
    auto with = at.access();
    with.server_name = "127.0.0.1";
    at.connect(with);
    CHECK_FALSE(at.get("/api").has_value());
  }
  SUBCASE("nobody listens") {
    auto with = at.access();
    at.server.reset();
    at.connect(with);
    auto answer = at.get("/api");
    REQUIRE_FALSE(answer);
    CHECK(answer.error().message.find("refused") != std::string::npos);
    CHECK(answer.error().message.find(with.url()) != std::string::npos);
  }
  SUBCASE("roots that are no certificates") {
    auto with = at.access();
    with.roots.text = "rubbish";
    at.connect(with);
    CHECK_FALSE(at.get("/api").has_value());
  }
  CHECK((at.server == nullptr || at.server->calls().empty()));  // the token went nowhere
}

TEST_CASE("a server is known by its address where the certificate names that, and RSA keys are fine") {
  ApiFixture at;
  at.serve({.certificate = {.ips = {"127.0.0.1"}, .key = KeyKind::rsa2048}});
  at.server->handle = [](ApiServer::Call& call) { call.answer(200, ""); };
  auto with = at.access();
  with.server_name = "127.0.0.1";
  at.connect(with);
  CHECK(at.get("/api").has_value());
}

TEST_CASE("a client certificate is shown to a server that wants one") {
  for (bool h2 : {true, false}) {
    ApiFixture at;
    at.serve({.h2 = h2, .clients = &at.ca});
    at.server->handle = [](ApiServer::Call& call) { call.answer(200, ""); };
    at.connect();
    CHECK_FALSE(at.get("/api").has_value());
    auto issued = at.ca.issue({.dns = {"me"}});
    auto with = at.access();
    with.certificate.text = issued.chain_pem;
    with.key.text = issued.key_pem;
    at.connect(with);
    CHECK(at.get("/api").has_value());
  }
}

TEST_CASE("a host name is resolved, and one that nobody knows is named") {
  ApiFixture at;
  at.serve(true);
  at.server->handle = [](ApiServer::Call& call) { call.answer(200, ""); };
  auto with = at.access();
  with.host = "localhost";
  at.connect(with);
  CHECK(at.get("/api").has_value());
  with.host = "no-such-host.invalid";
  at.connect(with);
  auto answer = at.get("/api");
  REQUIRE_FALSE(answer);
  CHECK(answer.error().message.find("cannot resolve no-such-host.invalid") != std::string::npos);
}

TEST_CASE("a request that HTTP does not allow is not sent") {
  with_both([](ApiFixture& at) {
    at.server->handle = [](ApiServer::Call& call) { call.answer(200, ""); };
    CHECK_FALSE(at.get("/api HTTP/1.1\r\nX: y").has_value());
    CHECK_FALSE(at.ask({.path = "/api", .accept = "a\r\nb: c"}).has_value());
    CHECK(at.server->calls().empty());
  });
}

TEST_CASE("the server's own words are found in a failure") {
  CHECK(failure_text(403, status_json(403, "Forbidden", "no, you may not")) == "HTTP 403: no, you may not");
  CHECK(failure_text(502, "<html>") == "HTTP 502");
  CHECK(percent_encode("a=b,c d/é") == "a%3Db%2Cc%20d%2F%C3%A9");
}

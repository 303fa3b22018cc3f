// The mirror of one resource under everything that an API server may do to it.
#include "kube_fixtures.h"

using namespace nodemesh;
using namespace nodemesh::kube;
using namespace nodemesh::test;

namespace {

const Resource kServices{"", {"v1"}, "services", "Service"};
const Resource kPolicies{
    "security.istio.io", {"v1", "v1beta1"}, "authorizationpolicies", "AuthorizationPolicy"};

struct Sink final : WatchSink {
  void on_upsert(std::shared_ptr<Object> object) override {
    log += "+" + object->key.name + object->resource_version + " ";
    objects[object->key.name] = object;
  }
  void on_remove(const ObjectKey& key) override {
    log += "-" + key.name + " ";
    objects.erase(key.name);
    emptied = emptied || objects.empty();
  }
  void on_synced() override { log += "synced "; }
  std::string take() { return std::exchange(log, {}); }
  std::string log;
  std::map<std::string, std::shared_ptr<Object>> objects;
  bool emptied = false;
};

// A server that refuses WatchList unless the test says otherwise, and a watch of Services that is quick to
// try again.
struct WatchFixture : ApiFixture {
  Sink sink;
  std::optional<Watch> watch;
  WatchTimes times{.first_retry = milliseconds(10),
                   .max_retry = milliseconds(50),
                   .relist_spread = milliseconds(5),
                   .slow_retry = milliseconds(40),
                   .seed = 1};
  size_t lists = 0, watches = 0;
  std::function<void(ApiServer::Call&)> on_list, on_watch;
  ApiServer::Call* open = nullptr;  // the newest watch

  explicit WatchFixture(bool h2 = true) {
    serve(h2);
    connect();
    on_list = [](ApiServer::Call& call) { call.answer(200, list_json({object_json("a", 1)}, 10)); };
    on_watch = [](ApiServer::Call& call) { call.start(200); };
    server->handle = [this](ApiServer::Call& call) {
      if (call.has("sendInitialEvents"))
        return call.answer(422, status_json(422, "Invalid", "sendInitialEvents: Forbidden"));
      if (call.has("watch=true")) return ++watches, open = &call, on_watch(call);
      ++lists, on_list(call);
    };
  }
  ~WatchFixture() { watch.reset(); }
  void start(WatchOptions options = {.resource = kServices}) {
    watch.emplace(reactor, *client, sink, std::move(options), times);
    watch->start();
  }
  void until_watching() {
    turn_until([&] { return watch->progress().state == WatchProgress::State::watching; });
  }
};

}  // namespace

TEST_CASE_FIXTURE(WatchFixture, "a list comes in pages, then changes as they are made") {
  on_list = [](ApiServer::Call& call) {
    CHECK(call.has("limit=500"));
    call.has("continue=a%2Fb") ? call.answer(200, list_json({object_json("b", 2)}, 10))
                               : call.answer(200, list_json({object_json("a", 1)}, 10, "a/b"));
  };
  start();
  until_watching();
  CHECK(sink.take() == "+a1 +b2 synced ");
  CHECK(open->has("resourceVersion=10"));
  CHECK(open->has("allowWatchBookmarks=true"));
  CHECK(open->has("timeoutSeconds="));
  open->send(event_json("ADDED", object_json("c", 11)) + event_json("MODIFIED", object_json("a", 12)) +
             event_json("DELETED", object_json("b", 13)));
  turn_until([&] { return watch->progress().resource_version == "13"; });
  CHECK(sink.take() == "+c11 +a12 -b ");
  CHECK(sink.objects.at("c")->key == ObjectKey{"", "Service", "shop", "c"});
}

TEST_CASE("WatchList brings the list as events, where the server has it") {
  for (bool h2 : {true, false}) {
    WatchFixture at(h2);
    at.server->handle = [&](ApiServer::Call& call) {
      REQUIRE(call.has("sendInitialEvents=true&resourceVersionMatch=NotOlderThan"));
      at.open = &call;
      call.start(200);
      call.send(event_json("ADDED", object_json("a", 1)) + bookmark_json(9));
    };
    at.start();
    at.turn_until([&] { return at.sink.objects.contains("a"); });
    CHECK_FALSE(at.watch->progress().synced);  // that was another bookmark
    at.open->send(event_json("ADDED", object_json("b", 2)) + bookmark_json(10, true) +
                  event_json("DELETED", object_json("a", 11)));
    at.turn_until([&] { return at.watch->progress().resource_version == "11"; });
    CHECK(at.sink.take() == "+a1 +b2 synced -a ");
    CHECK(at.lists == 0);
    CHECK(at.server->calls().size() == 1);
  }
}

TEST_CASE_FIXTURE(WatchFixture, "WatchList that is silent, or refused in the stream, is followed by pages") {
  bool silent = false;
  SUBCASE("silent") {
    silent = true;
  }
  SUBCASE("refused") {}
  times.initial_silence = milliseconds(50);
  auto usual = std::move(server->handle);
  server->handle = [&](ApiServer::Call& call) {
    if (!call.has("sendInitialEvents")) return usual(call);
    call.start(200);
    if (!silent) call.send(event_json("ERROR", status_json(400, "BadRequest", "no")));
  };
  start();
  until_watching();
  CHECK(sink.take() == "+a1 synced ");
}

TEST_CASE("a watch that ends or is cut goes on where it was, without a list") {
  for (bool h2 : {true, false}) {
    for (bool cut : {true, false}) {
      CAPTURE(h2);
      CAPTURE(cut);
      WatchFixture at(h2);
      at.start();
      at.until_watching();
      at.open->send(event_json("MODIFIED", object_json("a", 11)));
      at.turn_until([&] { return at.watch->progress().resource_version == "11"; });
      cut ? at.open->cut() : at.open->end();
      at.turn_until([&] { return at.watches == 2; });
      CHECK(at.open->has("resourceVersion=11"));
      CHECK(at.lists == 1);
      CHECK(at.sink.take() == "+a1 synced +a11 ");
    }
  }
}

TEST_CASE_FIXTURE(WatchFixture,
                  "half an event at the end of a cut watch is forgotten and comes again whole") {
  start();
  until_watching();
  auto event = event_json("ADDED", object_json("b", 11));
  open->send(event.substr(0, event.size() / 2));
  open->end();
  turn_until([&] { return watches == 2; });
  CHECK(open->has("resourceVersion=10"));
  open->send(event);
  turn_until([&] { return sink.objects.contains("b"); });
}

TEST_CASE_FIXTURE(WatchFixture, "a bookmark moves the place to go on from, and says how far it got") {
  start();
  until_watching();
  auto before = *watch->progress().passed;
  open->send(bookmark_json(50));
  turn_until([&] { return watch->progress().resource_version == "50"; });
  CHECK(*watch->progress().passed > before);
  open->end();
  turn_until([&] { return watches == 2; });
  CHECK(open->has("resourceVersion=50"));
  CHECK(sink.take() == "+a1 synced ");
}

TEST_CASE_FIXTURE(WatchFixture,
                  "410, as a status or as an event, makes a new list that is only a difference") {
  on_list = [&](ApiServer::Call& call) {
    if (lists == 1)
      return call.answer(200, list_json({object_json("a", 1), object_json("b", 2), object_json("c", 3)}, 10));
    call.answer(200, list_json({object_json("a", 1), object_json("c", 12), object_json("d", 13)}, 20));
  };
  bool as_event = false;
  SUBCASE("an event") {
    as_event = true;
  }
  SUBCASE("a status") {}
  start();
  until_watching();
  CHECK(sink.take() == "+a1 +b2 +c3 synced ");
  if (as_event) {
    open->send(event_json("ERROR", status_json(410, "Expired", "too old resource version: 10 (11)")));
  } else {
    on_watch = [&](ApiServer::Call& call) {
      if (watches == 2) return call.answer(410, status_json(410, "Expired", "too old"));
      call.start(200);
    };
    open->end();
  }
  turn_until([&] { return lists == 2; });
  turn_until([&] { return watch->progress().resource_version == "20"; });
  CHECK(sink.take() == "+c12 +d13 -b ");
  CHECK_FALSE(sink.emptied);
}

TEST_CASE_FIXTURE(WatchFixture, "a 410 between the pages of a list begins the list anew and loses nothing") {
  on_list = [&](ApiServer::Call& call) {
    if (lists == 2)
      return call.answer(410, status_json(410, "Expired", "The provided continue parameter is too old"));
    call.has("continue") ? call.answer(200, list_json({object_json("b", 2)}, 10))
                         : call.answer(200, list_json({object_json("a", 1)}, 10, "next"));
  };
  start();
  until_watching();
  CHECK(sink.take() == "+a1 +b2 synced ");
  CHECK(lists == 4);
}

TEST_CASE_FIXTURE(WatchFixture, "an object of the same name and another uid is removed and made anew") {
  start();
  until_watching();
  CHECK(sink.take() == "+a1 synced ");
  open->send(event_json("MODIFIED", object_json("a", 12, "another")));
  turn_until([&] { return watch->progress().resource_version == "12"; });
  CHECK(sink.take() == "-a +a12 ");
}

TEST_CASE_FIXTURE(WatchFixture, "events that come twice or late change nothing") {
  start();
  until_watching();
  open->send(event_json("MODIFIED", object_json("a", 12)) + event_json("MODIFIED", object_json("a", 12)) +
             event_json("MODIFIED", object_json("a", 11)) + event_json("DELETED", object_json("a", 11)) +
             event_json("DELETED", object_json("never", 11)) + bookmark_json(13));
  turn_until([&] { return watch->progress().resource_version == "13"; });
  CHECK(sink.take() == "+a1 synced +a12 ");
}

TEST_CASE_FIXTURE(WatchFixture, "failures of the server are waited out, and what is known stays") {
  on_list = [&](ApiServer::Call& call) {
    if (lists <= 3) return call.answer(lists == 1 ? 500 : lists == 2 ? 503 : 401, "oops");
    call.answer(200, list_json({object_json("a", 1)}, 10));
  };
  start();
  turn_until([&] { return !watch->progress().trouble.empty(); });
  CHECK(watch->progress().trouble.find("HTTP") != std::string::npos);
  until_watching();
  CHECK(sink.take() == "+a1 synced ");
  server->cut_all();
  server->handle = [&, usual = std::move(server->handle)](ApiServer::Call& call) {
    ++watches <= 4 ? call.answer(500, "oops") : usual(call);
  };
  turn_until([&] { return watches > 4 && watch->progress().state == WatchProgress::State::watching; });
  CHECK(sink.take().empty());
  CHECK(watch->progress().trouble.empty());
}

TEST_CASE_FIXTURE(WatchFixture, "Retry-After is kept to") {
  times.max_retry = milliseconds(20);
  on_list = [&](ApiServer::Call& call) {
    if (lists == 1) return call.answer(429, status_json(429, "TooManyRequests", "x"), {{"retry-after", "1"}});
    call.answer(200, list_json({}, 10));
  };
  start();
  auto before = Monotonic::now();
  until_watching();
  CHECK(Monotonic::now() - before >= seconds(1));  // a floor, not a promise of speed
}

TEST_CASE_FIXTURE(WatchFixture, "without the right to watch what is known stays, and it is asked for again") {
  start();
  until_watching();
  auto usual = std::exchange(server->handle, [](ApiServer::Call& call) {
    call.answer(403, status_json(403, "Forbidden", "services is forbidden"));
  });
  server->cut_all();
  turn_until([&] { return watch->progress().state == WatchProgress::State::forbidden; });
  CHECK(watch->progress().trouble.find("grant both") != std::string::npos);
  CHECK(watch->progress().synced);
  server->handle = usual;
  until_watching();
  CHECK(sink.take() == "+a1 synced ");
}

TEST_CASE_FIXTURE(WatchFixture, "without the right to watch from the start nothing is synced") {
  server->handle = [](ApiServer::Call& call) { call.answer(403, status_json(403, "Forbidden", "no")); };
  start({.resource = kPolicies, .optional = true});
  turn_until([&] { return watch->progress().state == WatchProgress::State::forbidden; });
  CHECK(sink.take().empty());
}

TEST_CASE_FIXTURE(WatchFixture, "of the versions of a resource the one that the server has is watched") {
  auto usual = std::move(server->handle);
  server->handle = [&](ApiServer::Call& call) {
    call.has("/v1/") ? call.answer(404, "404 page not found") : usual(call);
  };
  start({.resource = kPolicies, .optional = true});
  until_watching();
  CHECK(open->has("/apis/security.istio.io/v1beta1/authorizationpolicies"));
  CHECK(sink.objects.at("a")->version == "v1beta1");
  CHECK(sink.objects.at("a")->key.kind == "AuthorizationPolicy");
}

TEST_CASE_FIXTURE(WatchFixture, "a CRD that is absent is synced and empty, and read when it comes") {
  auto usual =
      std::exchange(server->handle, [](ApiServer::Call& call) { call.answer(404, "404 page not found"); });
  times.slow_retry = seconds(600);
  start({.resource = kPolicies, .optional = true});
  turn_until([&] { return watch->progress().synced; });
  CHECK(sink.take() == "synced ");
  size_t refusals = 0;
  server->handle = [&](ApiServer::Call& call) {  // its name is known a little before it is served
    refusals++ < 4 ? call.answer(404, "404 page not found") : usual(call);
  };
  watch->poke();
  until_watching();
  CHECK(sink.take() == "+a1 ");
}

TEST_CASE_FIXTURE(WatchFixture, "a kind that every server has is not synced by a 404") {
  server->handle = [](ApiServer::Call& call) { call.answer(404, "404 page not found"); };
  start();
  turn_until([&] { return server->calls().size() > 4; });
  CHECK(sink.take().empty());
}

TEST_CASE_FIXTURE(WatchFixture,
                  "a CRD that is removed while running takes its objects along at the second 404") {
  start({.resource = kPolicies, .optional = true});
  until_watching();
  CHECK(sink.take() == "+a1 synced ");
  size_t refusals = 0;
  auto usual = std::exchange(server->handle, [&](ApiServer::Call& call) {
    if (refusals++ == 3) CHECK(sink.objects.contains("a"));  // the second round begins
    call.answer(404, "404 page not found");
  });
  server->cut_all();
  turn_until([&] { return watch->progress().state == WatchProgress::State::absent; });
  CHECK(sink.take() == "-a ");
  server->handle = usual;
  until_watching();
  CHECK(sink.take() == "+a1 ");
}

TEST_CASE_FIXTURE(WatchFixture,
                  "an event that is no JSON makes a new list; one that is too deep costs itself only") {
  start();
  until_watching();
  std::string deep = std::string(80, '[') + std::string(80, ']');
  open->send(event_json("ADDED", object_json("deep", 11, "u", ",\"spec\":" + deep)) +
             event_json("ADDED", object_json("b", 12)));
  turn_until([&] { return sink.objects.contains("b"); });
  CHECK(watch->progress().refused_events == 1);
  CHECK(lists == 1);
  CHECK(sink.take() == "+a1 synced +b12 ");
  on_list = [](ApiServer::Call& call) { call.answer(200, list_json({object_json("a", 1)}, 20)); };
  open->send("{\"type\":\"DELETED\",\"obj\n");
  turn_until([&] { return lists == 2; });
  turn_until([&] { return watch->progress().resource_version == "20"; });
  CHECK(sink.take() == "-b ");
}

TEST_CASE_FIXTURE(WatchFixture, "an event of more than 4 MiB costs itself only, one of 1 MB is read") {
  start();
  until_watching();
  auto huge = [](const std::string& name, int version, size_t size) {
    return event_json(
        "ADDED", object_json(name, version, "u", ",\"spec\":{\"x\":\"" + std::string(size, 'y') + "\"}"));
  };
  open->send(huge("large", 11, 1 << 20) + huge("huge", 12, 5 << 20) +
             event_json("ADDED", object_json("b", 13)));
  turn_until([&] { return sink.objects.contains("b"); });
  CHECK(sink.take() == "+a1 synced +large11 +b13 ");
  CHECK(watch->progress().refused_events == 1);
}

TEST_CASE_FIXTURE(WatchFixture, "a page that is too large is asked for in smaller pages") {
  times.page_bytes = 10'000;
  on_list = [](ApiServer::Call& call) {
    call.has("limit=500") ? call.answer(200, std::string(10'001, ' '))
                          : call.answer(200, list_json({object_json("a", 1)}, 10));
  };
  start();
  until_watching();
  CHECK(sink.take() == "+a1 synced ");
  CHECK(lists == 2);
}

TEST_CASE_FIXTURE(WatchFixture, "an answer that is no list removes nothing") {
  start();
  until_watching();
  sink.take();
  on_list = [&](ApiServer::Call& call) {
    lists < 4 ? call.answer(200, lists == 2 ? "{}" : "{\"items\":[]}")
              : call.answer(200, list_json({object_json("a", 1)}, 20));
  };
  open->send(event_json("ERROR", status_json(410, "Gone", "")));
  turn_until([&] { return watch->progress().resource_version == "20"; });
  CHECK(sink.take().empty());
}

TEST_CASE_FIXTURE(WatchFixture, "a server that ends watches at once is not asked without a pause") {
  on_watch = [](ApiServer::Call& call) {
    call.start(200);
    call.end();
  };
  times.max_retry = times.first_retry = seconds(600);
  start();
  turn_until([&] { return watch->progress().state == WatchProgress::State::waiting; });
  CHECK(watches <= 3);
}

TEST_CASE_FIXTURE(WatchFixture,
                  "selectors, a namespace and metadata alone are asked for as the API wants it") {
  start({.resource = kServices,
         .ns = "shop",
         .field_selector = "spec.nodeName=node-1",
         .label_selector = "a in (b,c)",
         .metadata_only = true});
  until_watching();
  CHECK(open->has("/api/v1/namespaces/shop/services?"));
  CHECK(open->has("&fieldSelector=spec.nodeName%3Dnode-1&labelSelector=a%20in%20%28b%2Cc%29"));
  CHECK(open->accept == "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json");
  bool list_accept = false;
  for (const auto& call : server->calls())
    list_accept = list_accept || (!call->has("watch") &&
                                  call->accept.find("PartialObjectMetadataList;") != std::string::npos);
  CHECK(list_accept);
}

TEST_CASE_FIXTURE(WatchFixture, "a half-open watch is noticed and gone on with over a new connection") {
  connect({.ping_interval = milliseconds(50), .ping_timeout = milliseconds(50)});
  start();
  until_watching();
  auto contact = *watch->progress().contact;
  turn_until([&] { return *watch->progress().contact > contact; });
  ApiServer fresh(reactor, ca, {});
  server->freeze();
  turn_until([&] { return !watch->progress().trouble.empty(); });
  CHECK(watch->progress().trouble.find("PING") != std::string::npos);
  CHECK(watch->progress().resource_version == "10");
}

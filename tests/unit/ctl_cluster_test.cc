// The commands that talk to a cluster, on recorded objects.
#include <doctest/doctest.h>

#include <stdlib.h>
#include <zlib.h>

#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>

#include "ctl/archive.h"
#include "ctl/enroll.h"
#include "ctl/json_at.h"
#include "ctl/scrub.h"
#include "ctl/sysdump.h"
#include "ctl/websocket.h"

using namespace nodemesh;
using namespace nodemesh::ctl;
using nlohmann::json;

namespace {

bool has(const std::string& text, std::string_view part) {
  return text.find(part) != text.npos;
}

// Answers by the path without its query.
class Recorded final : public ClusterApi {
 public:
  std::map<std::string, json> objects;
  std::map<std::string, int> failures;
  std::string log = "a line\n";
  struct Patch {
    std::string path;
    json body;
  };
  std::vector<Patch> patches;
  std::vector<std::string> asked;

  ClusterReply call(kube::Verb verb, const std::string& path, const json& body, std::string_view) override {
    asked.push_back(path);
    auto place = path.substr(0, path.find('?'));
    if (auto failure = failures.find(place); failure != failures.end())
      return {failure->second, nullptr, "GET " + place + ": HTTP " + std::to_string(failure->second)};
    if (verb == kube::Verb::patch) patches.push_back({path, body});
    auto found = objects.find(place);
    if (found == objects.end()) return {404, nullptr, "GET " + place + ": HTTP 404"};
    return {200, found->second, ""};
  }
  Result<std::string> text(const std::string& path) override {
    asked.push_back(path);
    return log;
  }
};

struct Command {
  std::ostringstream out, err;
  Context context{out, err};
};

json labelled(const char* mode) {
  return mode == nullptr ? json::object() : json{{kModeLabel, mode}};
}

json pod(const std::string& name, const std::string& node, const char* mode = nullptr) {
  return {{"metadata", {{"name", name}, {"namespace", "shop"}, {"labels", labelled(mode)}}},
          {"spec", {{"nodeName", node}}},
          {"status", {{"phase", "Running"}}}};
}

struct Shop {
  Recorded api;
  Captured captured;
  Command command;

  explicit Shop(const char* namespace_mode, const char* deployment_mode = nullptr) {
    api.objects["/api/v1/namespaces/shop"] = {{"metadata", {{"labels", labelled(namespace_mode)}}}};
    api.objects["/apis/apps/v1/namespaces/shop/deployments/web"] = {
        {"spec",
         {{"selector", {{"matchLabels", {{"app", "web"}}}}},
          {"template", {{"metadata", {{"labels", labelled(deployment_mode)}}}}}}}};
  }
  int run(EnrolOptions options, std::vector<std::string> words) {
    options.ns = "shop";
    return enroll_in(command.context, {api, [&]() -> Result<Captured> { return captured; }}, options, words);
  }
};

}  // namespace

TEST_CASE("a WebSocket's key is answered as RFC 6455 shows") {
  CHECK(websocket_accept("dGhlIHNhbXBsZSBub25jZQ==") == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
  CHECK(make_websocket_key()->size() == 24);
  std::string head =
      "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
      "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSec-WebSocket-Protocol: v4";
  CHECK(check_upgrade(head, "dGhlIHNhbXBsZSBub25jZQ==", "v4"));
  CHECK_FALSE(check_upgrade(head, "other", "v4"));
  CHECK_FALSE(check_upgrade(head, "dGhlIHNhbXBsZSBub25jZQ==", "v5"));
  CHECK_FALSE(check_upgrade(head + "\r\nSec-WebSocket-Protocol: v4", "dGhlIHNhbXBsZSBub25jZQ==", "v4"));
  CHECK_FALSE(check_upgrade(head + "\r\nSec-WebSocket-Extensions: permessage-deflate",
                            "dGhlIHNhbXBsZSBub25jZQ==", "v4"));
}

TEST_CASE("messages are put together from frames, byte by byte if need be, and pings are passed on") {
  struct Owner final : WebSocketReader::Owner {
    std::vector<std::string> said;
    Result<> on_message(std::string_view bytes) override {
      said.push_back("m:" + std::string(bytes));
      return {};
    }
    void on_ping(std::string_view payload) override { said.push_back("p:" + std::string(payload)); }
    void on_close() override { said.push_back("close"); }
  } owner;
  WebSocketReader reader(owner);
  std::string large(70'000, 'x'), bytes;
  bytes += std::string("\x02\x02he\x89\x01!\x80\x03llo", 12);
  bytes += std::string("\x82\x7f\0\0\0\0\0\x01\x11\x70", 10) + large;
  bytes += std::string("\x88\0ignored", 9);
  for (char c : bytes) REQUIRE(reader.feed({&c, 1}));
  CHECK(owner.said == std::vector<std::string>{"p:!", "m:hello", "m:" + large, "close"});
}

TEST_CASE("frames that a server may not send end the connection") {
  struct Owner final : WebSocketReader::Owner {
    Result<> on_message(std::string_view) override { return {}; }
    void on_ping(std::string_view) override {}
    void on_close() override {}
  } owner;
  for (std::string bytes : {std::string("\xc2\0", 2),                          // an extension's bit
                            std::string("\x82\x81\1\2\3\4x", 7),               // masked
                            std::string("\x81\1x", 3),                         // text
                            std::string("\x80\1x", 3),                         // continues nothing
                            std::string("\x02\1x\x82\1x", 6),                  // a message in a message
                            std::string("\x09\0", 2),                          // a ping in parts
                            std::string("\x89\x7e\0\x7e", 4),                  // a long ping
                            std::string("\x82\x7e\0\1x", 5),                   // a length too long written
                            std::string("\x82\x7f\xff\0\0\0\0\0\0\0", 10)}) {  // an enormous one
    CAPTURE(bytes.size());
    CHECK_FALSE(WebSocketReader(owner).feed(bytes));
  }
}

TEST_CASE("what a client sends is masked, and its length is written as short as can be") {
  for (size_t size : {0u, 125u, 126u, 65535u, 65536u}) {
    auto frame = *websocket_frame(WebSocketFrame::binary, std::string(size, 'a'));
    size_t header = size < 126 ? 2 : size < 65536 ? 4 : 10;
    REQUIRE(frame.size() == header + 4 + size);
    CHECK(static_cast<uint8_t>(frame[0]) == 0x82);
    CHECK((frame[1] & 0x80) != 0);
    for (size_t i = 0; i < size; i += 1000) CHECK((frame[header + 4 + i] ^ frame[header + i % 4]) == 'a');
  }
}

TEST_CASE("a node's agent is its newest Pod that is not ending, and one that does not run says why") {
  auto agent = [](const char* name, const char* node, const char* made) {
    auto made_pod = pod(name, node);
    made_pod["metadata"]["creationTimestamp"] = made;
    return made_pod;
  };
  auto ending = agent("b-new", "beta", "2026-01-03T00:00:00Z"), pending = agent("c", "gamma", "");
  ending["metadata"]["deletionTimestamp"] = "2026-01-04T00:00:00Z";
  pending["status"] = {{"phase", "Pending"},
                       {"containerStatuses", {{{"state", {{"waiting", {{"reason", "ErrImagePull"}}}}}}}}};
  auto targets = agents_of({agent("a-old", "alpha", "2026-01-01T00:00:00Z"),
                            agent("a-new", "alpha", "2026-01-02T00:00:00Z"), ending,
                            agent("b-old", "beta", "2026-01-01T00:00:00Z"), pending, json::object()});
  REQUIRE(targets.size() == 3);
  CHECK(targets[0].pod == "a-new");
  CHECK(targets[1].pod == "b-old");
  CHECK(targets[2].problem == "the agent's Pod c is Pending (ErrImagePull)");
  keep_named(targets, {"beta", "omega"});
  REQUIRE(targets.size() == 2);
  CHECK(targets[0].name == "beta");
  CHECK(has(targets[1].problem, "no agent"));
}

TEST_CASE("what to enrol is a namespace or a workload, in kubectl's words") {
  CHECK(parse_enrolment_object({"ns", "shop"}, "x")->text() == "namespace shop");
  CHECK(parse_enrolment_object({"namespace/shop"}, "x")->path() == "/api/v1/namespaces/shop");
  CHECK(parse_enrolment_object({"sts/db"}, "x")->path() == "/apis/apps/v1/namespaces/x/statefulsets/db");
  CHECK(parse_enrolment_object({"pod", "a b"}, "x")->path() == "/api/v1/namespaces/x/pods/a%20b");
  for (auto words : std::vector<std::vector<std::string>>{
           {}, {"shop"}, {"job/x"}, {"pod/"}, {"pod/a/b"}, {"pod", "a/b"}, {"pod/a", "b"}})
    CHECK_FALSE(parse_enrolment_object(words, "x"));
}

TEST_CASE("enrolling patches that label alone, once, and a dry run says so to the API server") {
  Shop shop(nullptr);
  CHECK(shop.run({.dry_run = true}, {"namespace", "shop"}) == kOk);
  CHECK(shop.run({}, {"namespace", "shop"}) == kOk);
  REQUIRE(shop.api.patches.size() == 2);
  CHECK(has(shop.api.patches[0].path, "dryRun=All"));
  CHECK_FALSE(has(shop.api.patches[1].path, "dryRun"));
  CHECK(shop.api.patches[1].body ==
        json::parse(R"({"metadata":{"labels":{"istio.io/dataplane-mode":"ambient"}}})"));
  CHECK(has(shop.command.out.str(), "would change label istio.io/dataplane-mode: (none) -> ambient\n"));

  Shop enrolled("ambient");
  CHECK(enrolled.run({}, {"namespace", "shop"}) == kOk);
  CHECK(enrolled.run({}, {"deployment/web"}) == kOk);
  CHECK(enrolled.api.patches.empty());
  CHECK(has(enrolled.command.out.str(),
            "deployment shop/web: nothing to change, it is in the mesh by its namespace"));
}

TEST_CASE("a workload leaves an enrolled namespace by none, and any other by losing its label") {
  Shop inside("ambient");
  CHECK(inside.run({.enrol = false}, {"deployment/web"}) == kOk);
  CHECK(inside.api.patches.at(0).body ==
        json::parse(R"({"spec":{"template":{"metadata":{"labels":{"istio.io/dataplane-mode":"none"}}}}})"));
  Shop outside(nullptr, "ambient");
  CHECK(outside.run({.enrol = false}, {"deployment/web"}) == kOk);
  CHECK(outside.api.patches.at(0).body["spec"]["template"]["metadata"]["labels"][kModeLabel].is_null());
}

TEST_CASE("what cannot be enrolled is refused before anything is changed") {
  Shop shop(nullptr);
  shop.api.objects["/apis/apps/v1/namespaces/shop/deployments/web"]["spec"]["template"]["spec"] = {
      {"hostNetwork", true}};
  CHECK(shop.run({}, {"deployment/web"}) == kFailure);
  shop.command.context.ns = "shop";
  CHECK(shop.run({}, {"namespace", "shop"}) == kFailure);
  CHECK(shop.run({}, {"namespace", "other"}) == kFailure);
  CHECK(shop.run({}, {"shop"}) == kUsage);
  CHECK(shop.api.patches.empty());
  shop.api.failures["/api/v1/namespaces/shop"] = 403;
  CHECK(shop.run({}, {"namespace", "shop"}) == kFailure);
  CHECK(has(shop.command.err.str(), "lists the rights"));
  shop.api.failures["/api/v1/namespaces/shop"] = 0;
  CHECK(shop.run({}, {"namespace", "shop"}) == kUnreachable);
}

TEST_CASE("enrolment is complete when agents listen for every pod that is meant, and leaving when none may") {
  EnrolmentObject ns{"namespace", "shop", ""}, web{"deployment", "web", "shop"};
  auto ended = pod("done", "n1"), host = pod("host", "n1"), unplaced = pod("new", "");
  ended["status"]["phase"] = "Succeeded";
  host["spec"]["hostNetwork"] = true;
  std::vector<json> pods = {pod("a", "n1"), pod("b", "n2"), ended, host, pod("other", "n1", "none")};
  auto progress = enrolment_progress(ns, true, "ambient", pods, {{"shop/a"}});
  CHECK(progress.done == 1);
  CHECK(progress.of == 2);
  CHECK(progress.reason == "the agent of n2 does not listen for pod shop/b yet");
  CHECK(enrolment_progress(ns, true, "ambient", pods, {{"shop/a", "shop/b"}}).complete());
  CHECK(enrolment_progress(ns, true, "ambient", {unplaced}, {}).reason == "pod shop/new has no node yet");
  CHECK(has(enrolment_progress(web, true, "", {pod("a", "n1")}, {{"shop/a"}}).reason, "of the time before"));
  CHECK(has(enrolment_progress(ns, false, "", pods, {{"shop/a"}}).reason, "n1 still holds pod shop/a"));
  CHECK(enrolment_progress(ns, false, "", pods, {}).complete());
  CHECK(enrolment_progress(ns, false, "", pods, {.pods = {}, .silent = {{"n2", "no answer"}}}).reason ==
        "whether the agent of n2 listens for pod shop/b is not known: no answer");
  CHECK(enrolment_progress(ns, false, "", pods, {.pods = {}, .silent = {{"n3", "no answer"}}}).complete());
}

TEST_CASE("waiting ends with an error that names the pod when the time is over") {
  Shop shop("ambient");
  shop.api.objects["/api/v1/namespaces/shop/pods"] = {{"items", {pod("a", "n1")}}};
  shop.captured.pods = {"shop/a"};
  CHECK(shop.run({.wait = true}, {"namespace", "shop"}) == kOk);
  CHECK(has(shop.command.err.str(), "1 of 1 pods of namespace shop are in the mesh\n"));
  shop.captured.pods.clear();
  CHECK(shop.run({.wait = true, .timeout_s = 0}, {"namespace", "shop"}) == kFailure);
  CHECK(
      has(shop.command.err.str(), "not done after 0 s: the agent of n1 does not listen for pod shop/a yet"));
}

TEST_CASE("selectors are written as the API server reads them") {
  CHECK(selector_text(json::parse(R"({"matchLabels":{"a":"b"},"matchExpressions":[
    {"key":"c","operator":"In","values":["d","e"]},{"key":"f","operator":"DoesNotExist"}]})")) ==
        "a=b,c in (d,e),!f");
  CHECK(selector_text(nullptr).empty());
}

TEST_CASE("keys, tokens and passwords are taken out of texts, and nothing else") {
  std::string key = "-----BEGIN EC PRIVATE KEY-----\nMHcCAQEE\n-----END EC PRIVATE KEY-----\n";
  std::string jwt = "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJrdWJlcm5ldGVzIn0.c2lnbmF0dXJl";
  CHECK(scrub("a " + key + "b") == "a [removed]\nb");
  CHECK(scrub("cut -----BEGIN PRIVATE KEY-----\nMHcC") == "cut [removed]");
  CHECK(scrub("x LS0tLS1CRUdJTiBFQyBQUklW== y") == "x [removed] y");
  CHECK(scrub("got " + jwt + ", fine") == "got [removed], fine");
  CHECK(scrub("Authorization: Bearer 0123456789abcdef0123") == "Authorization: [removed]");
  CHECK(scrub("DB_PASSWORD=hunter2 --api-token=\"x y\" z") ==
        "DB_PASSWORD=[removed] --api-token=[removed] z");
  CHECK(scrub(R"({"msg":"PGPASSWORD=\"x y\", ok","password": "z","n":1})") ==
        R"({"msg":"PGPASSWORD=[removed], ok","password":[removed],"n":1})");
  CHECK(scrub(R"({"line":"{\"token\":\"z\"}"})") == R"({"line":"{\"token\":[removed]}"})");
  for (std::string plain : {"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----", "a bearer token",
                            "--ca-token-file=/var/run/x", "eyJ.short", "key=value", "secret: not found",
                            "\"token\":null", "token=\"\""})
    CHECK(scrub(plain) == plain);
}

TEST_CASE("objects lose environment values, last-applied copies and Secrets' data") {
  auto object = json::parse(R"({"kind":"Pod","metadata":{"managedFields":[1],"annotations":{
    "kubectl.kubernetes.io/last-applied-configuration":"x","keep":"y"}},
    "spec":{"containers":[{"env":[{"name":"A","value":"plain"},{"name":"B","valueFrom":{"fieldRef":{}}}]}],
    "token":"abc","items":[{"kind":"Secret","data":{"a":"b"}}]}})");
  scrub_object(object);
  CHECK(object == json::parse(R"({"kind":"Pod","metadata":{"annotations":{"keep":"y"}},
    "spec":{"containers":[{"env":[{"name":"A","value":"[removed]"},{"name":"B","valueFrom":{"fieldRef":{}}}]}],
    "token":"[removed]","items":[{"kind":"Secret"}]}})"));
  auto outline = pod_outline(json::parse(R"({"metadata":{"name":"a","annotations":{"x":"y"}},
    "spec":{"nodeName":"n","containers":[{"name":"c","args":["--password","x"],"env":[1]}]}})"));
  CHECK(outline ==
        json::parse(R"({"metadata":{"name":"a"},"spec":{"nodeName":"n","containers":[{"name":"c"}]}})"));
}

TEST_CASE("what a pod's probes say for a password and what its application said last is left out") {
  auto outline = pod_outline(json::parse(R"({"spec":{"containers":[{"name":"c",
    "livenessProbe":{"exec":{"command":["mysqladmin","-phunter2","ping"]},"periodSeconds":5},
    "readinessProbe":{"httpGet":{"path":"/","port":80,"httpHeaders":[{"name":"X","value":"hunter2"}]}},
    "startupProbe":7}]},
    "status":{"phase":"Running","containerStatuses":[7,{"name":"c","lastState":{"terminated":
    {"exitCode":1,"message":"hunter2"}}}],"initContainerStatuses":"x"}})"));
  CHECK_FALSE(has(outline.dump(), "hunter2"));
  const auto& container = outline["spec"]["containers"][0];
  CHECK(container["livenessProbe"]["periodSeconds"] == 5);
  CHECK(container["readinessProbe"]["httpGet"] == json::parse(R"({"path":"/","port":80})"));
  CHECK(outline["status"]["containerStatuses"][1]["lastState"]["terminated"]["exitCode"] == 1);
  auto route =
      json::parse(R"({"set":[{"name":"Authorization","value":"Basic x"},{"name":"X-Api-Token","value":"x"},
    {"name":"plain","value":"y"}]})");
  scrub_object(route);
  CHECK(route == json::parse(R"({"set":[{"name":"Authorization","value":"[removed]"},
    {"name":"X-Api-Token","value":"[removed]"},{"name":"plain","value":"y"}]})"));
}

TEST_CASE(
    "an archive is written to a file of its own: no link is followed, no file that others read is kept") {
  char name[] = "/tmp/nodemesh-archive-XXXXXX";
  std::filesystem::path folder(::mkdtemp(name));
  auto target = folder / "target", link = folder / "link", wide = folder / "wide";
  std::filesystem::create_symlink(target, link);
  std::ofstream(wide) << "old";
  std::filesystem::permissions(wide, std::filesystem::perms(0666));
  std::ifstream reader(wide);  // as somebody would who had made it
  CHECK_FALSE(Archive::create(link, {}));
  CHECK_FALSE(Archive::create(folder, {}));
  CHECK_FALSE(std::filesystem::exists(target));
  auto archive = Archive::create(wide, {});
  REQUIRE(archive);
  CHECK(archive->add("a", "secret"));
  CHECK(archive->finish());
  CHECK(std::filesystem::status(wide).permissions() == std::filesystem::perms(0600));
  std::string seen;
  reader >> seen;
  CHECK(seen == "old");
  std::filesystem::remove_all(folder);
}

TEST_CASE("no file of an archive has a name that leads out of the folder it is unpacked in") {
  for (const char* good : {"a", "a/b.json", "nodes/ip-10-0-0-1.eu_west.internal/status.json", "a..b/..c"})
    CHECK(Archive::can_hold(good));
  for (std::string bad : {"", "/", "/etc/passwd", "..", "a/../b", "a/..", "./a", "a//b", "a/", "a\\b", "a\nb",
                          "a\x1b[31m", "b\xc3\xa4"})
    CHECK_FALSE(Archive::can_hold(bad));
  CHECK_FALSE(Archive::can_hold(std::string(151, 'a') + "/b"));
  CHECK_FALSE(Archive::can_hold(std::string(100, 'a')));
}

TEST_CASE("an answer nested without end is no JSON, and a list without end no list") {
  std::string deep(100'000, '[');
  CHECK(parse_json(deep + std::string(deep.size(), ']')).is_discarded());
  CHECK(parse_json(R"({"a":"[[[[\"[","b":[[]]})").is_object());
  struct Endless final : ClusterApi {
    ClusterReply call(kube::Verb, const std::string&, const json&, std::string_view) override {
      ++asked;
      return {200, {{"items", json::array()}, {"metadata", {{"continue", "more"}}}}, ""};
    }
    Result<std::string> text(const std::string&) override { return ""; }
    int asked = 0;
  } api;
  auto listed = api.list("/api/v1/pods");
  REQUIRE_FALSE(listed);
  CHECK(has(listed.error().message, "GET /api/v1/pods: the list does not end"));
}

namespace {

struct Dumped {
  int exit = 0;
  std::string bytes, err;  // the archive, uncompressed
};

Dumped dump(Recorded& api, const AskPod& ask, int max_mib = 10) {
  char name[] = "/tmp/nodemesh-dump-XXXXXX";
  std::filesystem::path folder(::mkdtemp(name));
  Command command;
  Dumped dumped;
  auto file = (folder / "dump.tar.gz").string();
  dumped.exit = sysdump_from(command.context, {api, ask}, {.file = file, .max_mib = max_mib}, {});
  dumped.err = command.err.str();
  gzFile in = gzopen(file.c_str(), "rb");
  char chunk[4096];
  for (int got = 0; in != nullptr && (got = gzread(in, chunk, sizeof chunk)) > 0;)
    dumped.bytes.append(chunk, static_cast<size_t>(got));
  if (in != nullptr) gzclose(in);
  std::filesystem::remove_all(folder);
  return dumped;
}

// As tar reads them: a header block of 512 bytes, then the file in whole blocks.
std::set<std::string> names_of(const std::string& bytes) {
  std::set<std::string> names;
  for (size_t at = 0; at + 512 <= bytes.size() && bytes[at] != '\0';) {
    auto text = [&](size_t offset, size_t most) {
      return std::string(bytes.c_str() + at + offset).substr(0, most);
    };
    auto prefix = text(345, 155);
    names.insert(prefix + (prefix.empty() ? "" : "/") + text(0, 100));
    at += 512 + (std::stoul(text(124, 11), nullptr, 8) + 511) / 512 * 512;
  }
  return names;
}

}  // namespace

TEST_CASE("a sysdump holds what could be read and names what could not, and no Secret is asked for") {
  Recorded api;
  auto agent = pod("agent-1", "n1");
  agent["spec"]["containers"] = {{{"name", "proxy"}}};
  api.objects["/version"] = {{"gitVersion", "v1.34"}};
  api.objects["/api/v1/namespaces/nodemesh-system/pods"] = {{"items", {agent}}};
  api.failures["/api/v1/nodes"] = 403;
  api.log = "a line with token=abcdefgh\n";
  auto dumped = dump(api, [](const PodPort&, std::string_view, std::string_view path, milliseconds) {
    return path == "/metrics" ? Result<HttpResponse>(HttpResponse{500, ""})
                              : HttpResponse{200, "{\"page\":\"" + std::string(path) + "\"}"};
  });
  CHECK(dumped.exit == kOk);
  CHECK(has(dumped.bytes, "nodemesh-sysdump/nodes/n1"));
  CHECK(has(dumped.bytes, "\"page\": \"/config_dump\""));
  CHECK(has(dumped.bytes, "a line with token=[removed]"));
  CHECK_FALSE(has(dumped.bytes, "abcdefgh"));
  CHECK(has(dumped.bytes, "\"why\": \"GET /api/v1/nodes: HTTP 403\""));
  CHECK(has(dumped.err, "warning: nodes/n1/metrics.txt is missing: HTTP 500"));
  CHECK(has(dumped.bytes, "\"gateways\""));  // not installed
  for (const auto& path : api.asked) CHECK_FALSE(has(path, "secret"));
}

TEST_CASE("an object with a hostile name is left out of a sysdump, and the others are there") {
  Recorded api;
  auto agent = pod("agent-1", "n1"), hostile = pod("../../../etc/cron.d/x", std::string(200, 'n'));
  auto third = pod("agent-3", "../../n3");
  for (auto* one : {&agent, &hostile, &third})
    (*one)["spec"]["containers"] = {{{"name", "proxy"}}, {{"name", "../../y"}}};
  api.objects["/version"] = json::object();
  api.objects["/api/v1/namespaces/nodemesh-system/pods"] = {{"items", {agent, hostile, third}}};
  auto dumped = dump(api, [](const PodPort&, std::string_view, std::string_view, milliseconds) {
    return Result<HttpResponse>(HttpResponse{200, "{}"});
  });
  CHECK(dumped.exit == kOk);
  auto names = names_of(dumped.bytes);
  CHECK(names.contains("nodemesh-sysdump/nodes/n1/status.json"));
  CHECK(names.contains("nodemesh-sysdump/logs/agent-1/proxy.log"));
  CHECK(names.contains("nodemesh-sysdump/index.json"));
  for (const auto& name : names) CHECK_MESSAGE(Archive::can_hold(name), name);
  CHECK(has(dumped.err, "no file can be called so"));
}

TEST_CASE("a sysdump stays below its size, and says what it left out") {
  Recorded api;
  api.objects["/version"] = json::object();
  api.objects["/api/v1/namespaces/nodemesh-system/configmaps"] = {{"items", {std::string(2 << 20, 'x')}}};
  auto dumped = dump(api, {}, 1);
  CHECK(dumped.exit == kOk);
  CHECK(dumped.bytes.size() < (1u << 20));
  CHECK(has(dumped.err, "mesh/configmaps.json is missing: --max-mib is reached"));
}

TEST_CASE("no archive is made while the API server does not answer") {
  Recorded api;
  api.failures["/version"] = 0;
  auto dumped = dump(api, {});
  CHECK(dumped.exit == kUnreachable);
  CHECK(dumped.bytes.empty());
}

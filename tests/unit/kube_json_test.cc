// JSON of an API server into Nodes, list pages, watch lines, and the strict HTTP/1.1 reader.
#include <doctest/doctest.h>

#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "kube/h1_response.h"
#include "kube/json.h"
#include "kube/resources.h"
#include "kube/yaml.h"

using namespace nodemesh;
using namespace nodemesh::kube;

namespace {

// The tree without places, to compare with what the YAML reader makes.
std::string shape(const Node& node) {
  std::string out = node.key + ":" + type_name(node.type) + ":" + node.text + "{";
  for (const auto& child : node.children) out += shape(child) + ",";
  return out + "}";
}

struct Heard final : H1Response::Reader {
  void on_head(const http::HeaderBlock& head) override {
    status = head.status;
    fields = {head.fields.begin(), head.fields.begin() + static_cast<ptrdiff_t>(head.used)};
  }
  void on_body(std::string_view bytes) override { body += bytes; }
  int status = 0;
  std::vector<std::pair<std::string, std::string>> fields;
  std::string body;
};

// The response in pieces of `step` bytes; the error's message, or what was heard.
std::string read_response(std::string_view text, size_t step, bool* done = nullptr) {
  Heard heard;
  H1Response response(heard);
  for (size_t at = 0; at < text.size() && !response.done(); at += step) {
    auto used = response.feed(text.substr(at, step));
    if (!used) return used.error().message;
  }
  if (done != nullptr) *done = response.done();
  return std::to_string(heard.status) + " " + heard.body;
}

}  // namespace

TEST_CASE("JSON gives the same tree as the YAML reader makes of it") {
  std::string text = R"({"a": "x", "n": -12, "f": 1.5, "t": true, "z": null, "l": [1, {"k": []}], "e": {}})";
  auto tree = parse_json(text);
  REQUIRE(tree);
  auto yaml = parse_yaml(text, "f");
  REQUIRE(yaml.roots.size() == 1);
  CHECK(shape(*tree) == shape(yaml.roots[0]));
}

TEST_CASE("managed fields and the last applied configuration are read over") {
  auto tree = parse_json(R"({"metadata": {"managedFields": [{"f:spec": {"f:a": {}}}], "name": "x",
    "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}", "a": "b"}},
    "spec": {"managedFields": [1], "matchLabels": {"kubectl.kubernetes.io/last-applied-configuration": "x"}}})");
  REQUIRE(tree);
  CHECK(tree->find("metadata")->find("managedFields") == nullptr);
  CHECK(tree->find("metadata")->find("name")->text == "x");
  CHECK(tree->find("metadata")->find("annotations")->children.size() == 1);
  CHECK(tree->find("spec")->find("managedFields")->children.size() == 1);
  CHECK(tree->find("spec")->find("matchLabels")->children.size() == 1);
}

TEST_CASE("every truncation of a watch event is refused as no JSON") {
  std::string line = R"({"type":"ADDED","object":{"kind":"A","metadata":{"name":"x","l":[1,2.5,"\u00e9"]}}})";
  REQUIRE(parse_watch_event(line));
  for (size_t size = 0; size < line.size(); ++size) {
    auto event = parse_watch_event(std::string_view(line).substr(0, size));
    REQUIRE_FALSE(event);
    CHECK(event.error().broken);
  }
}

TEST_CASE("depth and number of values are bounded, and what is refused so is not called broken") {
  std::string deep(100'000, '[');
  auto tree = parse_json(deep);
  REQUIRE_FALSE(tree);
  CHECK_FALSE(tree.error().broken);
  std::string wide = "[";
  for (int i = 0; i < 2000; ++i) wide += "1,";
  CHECK_FALSE(parse_json(wide + "1]", 1000).has_value());
  CHECK(parse_json(wide + "1]", 3000).has_value());
}

TEST_CASE("a key that stands twice and bytes behind the value are refused") {
  CHECK_FALSE(parse_json(R"({"a": 1, "a": 2})"));
  CHECK_FALSE(parse_json(R"({"a": 1} {})"));
  CHECK_FALSE(parse_json("{\"a\": \"\xff\"}"));
  CHECK_FALSE(parse_json(""));
}

TEST_CASE("a bad item of a list page is left out alone") {
  std::string deep = std::string(80, '[') + std::string(80, ']');
  auto page = parse_list_page(
      R"({"kind":"PodList","metadata":{"resourceVersion":"7","continue":"next"},"items":[)"
      R"({"metadata":{"name":"a"}},{"x":)" +
      deep + R"(},{"metadata":{"name":"b","name":"c"}},{"k":1,"k":2},{"metadata":{"name":"d"}}]})");
  REQUIRE(page);
  CHECK(page->resource_version == "7");
  CHECK(page->next == "next");
  CHECK(page->left_out == 3);
  REQUIRE(page->items.size() == 2);
  CHECK(page->items[0].find("metadata")->find("name")->text == "a");
  CHECK(page->items[1].find("metadata")->find("name")->text == "d");
}

TEST_CASE("what is no list is broken: an empty answer is not an empty list") {
  for (auto text : {"{}", "[]", R"({"metadata":{},"items":[]})", R"({"metadata":{"resourceVersion":"1"}})",
                    R"({"metadata":{"resourceVersion":"1"},"items":{}})"}) {
    auto page = parse_list_page(text);
    REQUIRE_FALSE(page);
    CHECK(page.error().broken);
  }
  CHECK(parse_list_page(R"({"metadata":{"resourceVersion":"1"},"items":null})"));
}

TEST_CASE("an object of a list or of metadata alone gets the resource's kind and version") {
  auto tree = parse_json(R"({"kind":"PartialObjectMetadata","metadata":{"name":"x","resourceVersion":"5"}})");
  auto object = make_api_object(std::move(*tree), "Namespace", "v1");
  CHECK(object->named);
  CHECK(object->key == ObjectKey{"", "Namespace", "", "x"});
  CHECK(object->resource_version == "5");
}

TEST_CASE("lines are cut where they end, whatever pieces they come in, and too long ones are dropped whole") {
  std::string text = "one\n\ntwo\n" + std::string(50, 'x') + "\nthree\nfour";
  for (size_t step = 1; step < text.size(); ++step) {
    LineSplitter lines(20);
    std::string got;
    for (size_t at = 0; at < text.size(); at += step) {
      lines.feed(std::string_view(text).substr(at, step), [&](std::string_view line) {
        got.append(line).append("|");
        return true;
      });
    }
    CHECK(got == "one|two|three|");
    CHECK(lines.take_dropped() == 1);
  }
}

TEST_CASE("plurals and paths are those of the API") {
  CHECK(plural_of("NetworkPolicy") == "networkpolicies");
  CHECK(plural_of("Gateway") == "gateways");
  CHECK(plural_of("ServiceEntry") == "serviceentries");
  CHECK(plural_of("Ingress") == "ingresses");
  CHECK(plural_of("GatewayClass") == "gatewayclasses");
  CHECK(plural_of("EndpointSlice") == "endpointslices");
  Resource core{"", {"v1"}, "pods", "Pod"}, other{"apps", {"v1", "v1beta1"}, "deployments", "Deployment"};
  CHECK(core.path() == "/api/v1/pods");
  CHECK(core.object_path("a", "b") == "/api/v1/namespaces/a/pods/b");
  CHECK(other.path("x", 1) == "/apis/apps/v1beta1/namespaces/x/deployments");
  CHECK(other.full_name() == "deployments.apps");
}

TEST_CASE("an HTTP/1.1 response is read the same in any pieces") {
  std::string text =
      "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX: y\r\n\r\n"
      "5;ext=1\r\nhello\r\n6\r\n world\r\n0\r\nSum: z\r\n\r\n";
  for (size_t step = 1; step <= text.size(); ++step) {
    bool done = false;
    CHECK(read_response(text, step, &done) == "200 hello world");
    CHECK(done);
  }
  bool done = true;
  read_response(text.substr(0, text.size() - 1), 7, &done);
  CHECK_FALSE(done);
  CHECK(read_response("HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno", 3) == "404 no");
  CHECK(read_response("HTTP/1.1 204 \r\n\r\n", 3, &done) == "204 ");
  CHECK(done);
}

TEST_CASE("an HTTP/1.1 response that could be read in two ways is refused") {
  const char* kBad[] = {
      "HTTP/1.1 200 OK\nContent-Length: 0\n\n",
      "HTTP/1.1 200 OK\r\n\r\n",
      "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx",
      "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
      "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
      "HTTP/1.1 200 OK\r\nContent-Length: +1\r\n\r\n",
      "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999999\r\n\r\n",
      "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
      "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nhello\r\n",
      "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
      "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n",
      "HTTP/1.1 200 OK\r\nName : x\r\n\r\n",
      "HTTP/1.1 200 OK\r\nA: b\r\n folded\r\n\r\n",
      "HTTP/1.1 101 Switching Protocols\r\n\r\n",
      "HTTP/2 200 OK\r\n\r\n",
      "HTTP/1.1 20 OK\r\n\r\n",
      "garbage\r\n",
  };
  for (const char* text : kBad) {
    INFO(text);
    CHECK(read_response(text, 1000).starts_with("HTTP/1.1: "));
  }
  CHECK(read_response("HTTP/1.1 200 OK\r\nA: " + std::string(100'000, 'x'), 1000)
            .find("head exceeds the limit") != std::string::npos);
}

#include <doctest/doctest.h>

#include "kube/fields.h"
#include "kube/objects.h"
#include "kube/yaml.h"

using namespace nodemesh::kube;

TEST_CASE("every value knows its line, column and path") {
  auto documents =
      parse_yaml("# head\nspec:\n  ports:\n  - name: a\n    port: 80\n  labels:\n    a.b/c: x\n", "f");
  REQUIRE(documents.roots.size() == 1);
  auto& root = documents.roots[0];
  root.link();
  auto* port = root.find("spec")->find("ports")->children[0].find("port");
  CHECK(port->line == 5);
  CHECK(port->column == 11);
  CHECK(port->path() == "spec.ports[0].port");
  CHECK(root.find("spec")->line == 2);
  CHECK(root.find("spec")->find("labels")->find("a.b/c")->path() == "spec.labels[\"a.b/c\"]");
}

TEST_CASE("documents are separate: a broken one costs only itself and lines go on") {
  auto documents = parse_yaml("a: 1\n---\nb: [\n---\nc: 3\n--- # note\n---\nd: 4\n...\n", "f");
  REQUIRE(documents.roots.size() == 3);
  CHECK(documents.roots[1].find("c")->line == 5);
  CHECK(documents.roots[2].find("d")->line == 8);
  REQUIRE(documents.problems.size() == 1);
  CHECK(documents.problems[0].line >= 3);
  CHECK(documents.problems[0].line <= 4);
  CHECK(documents.problems[0].file == "f");
}

TEST_CASE("scalars have the types that Kubernetes gives them") {
  using Type = Node::Type;
  std::pair<const char*, Type> cases[] = {{"1", Type::integer},      {"-1", Type::integer},
                                          {"0x1F", Type::integer},   {"1.5", Type::decimal},
                                          {"1e3", Type::decimal},    {"10.0.0.1", Type::string},
                                          {"1.2.3", Type::string},   {"true", Type::boolean},
                                          {"yes", Type::string},     {"~", Type::null},
                                          {"null", Type::null},      {"", Type::null},
                                          {"fd00::1", Type::string}, {"2024-01-01T00:00:00Z", Type::string},
                                          {"-", Type::string},       {".", Type::string},
                                          {"+", Type::string},       {"5d4f8", Type::string},
                                          {".inf", Type::decimal}};
  for (auto [text, type] : cases) {
    INFO(text);
    CHECK(plain_type(text) == type);
  }
  auto documents = parse_yaml("a: \"1\"\nb: '1'\nc: !!str 1\nd: 1\ne: |\n  1\n", "f");
  REQUIRE(documents.roots.size() == 1);
  for (auto key : {"a", "b", "c", "e"}) CHECK(documents.roots[0].find(key)->type == Type::string);
  CHECK(documents.roots[0].find("d")->type == Type::integer);
}

TEST_CASE("hostile YAML is refused with a reason") {
  auto refused = [](std::string text, std::string_view part) {
    auto documents = parse_yaml(text, "f");
    INFO(text.substr(0, 60));
    CAPTURE(documents.problems.empty() ? "" : documents.problems[0].message);
    CHECK(documents.roots.empty());
    REQUIRE(documents.problems.size() == 1);
    CHECK(documents.problems[0].message.find(part) != std::string::npos);
    CHECK_FALSE(documents.problems[0].fix.empty());
  };
  refused("a: &x [1]\nb: *x\n", "aliases");
  refused(std::string(65, '[') + std::string(65, ']'), "deeper than 64");
  refused(std::string(100'000, '['), "");
  refused("a: \xff\n", "UTF-8");
  refused("a: \xc0\x80\n", "UTF-8");
  refused("a: \xed\xa0\x80\n", "UTF-8");
  refused("a: 1\nb: 2\na: 3\n", "\"a\" stands twice");
  refused("{a: 1, a: 1}", "stands twice");
  refused("? {x: 1}\n: 1\n", "key");
  refused(": 1\n", "key");
  refused(std::string("a: b\0c\n", 7), "control character");
  refused("a: b\x04", "control character");
  refused("a: \tb: c: d\n", "");
  refused(std::string(kMaxFileBytes + 1, 'a'), "larger than 4 MiB");
  refused("a: \"unterminated\n", "");
  refused("a: 'unterminated", "");
  refused("a: [1, 2\n", "");
  refused("a: @x\n", "");
}

TEST_CASE("too many values in one file are refused") {
  std::string text = "[";
  for (size_t i = 0; i < kMaxNodes + 1; ++i) text += "1,";
  text += "1]";
  REQUIRE(text.size() < kMaxFileBytes);
  auto documents = parse_yaml(text, "f");
  REQUIRE(documents.problems.size() == 1);
  CHECK(documents.problems[0].message.find("too many values") != std::string::npos);
}

TEST_CASE("JSON, with tabs and CRLF, is read like YAML") {
  auto documents = parse_yaml("{\r\n\t\"a\": \"x\\u00e9\\/\",\r\n\t\"b\": [1, true, null]\r\n}\r\n", "f");
  REQUIRE(documents.roots.size() == 1);
  CHECK(documents.roots[0].find("a")->text == "x\xc3\xa9/");
  CHECK(documents.roots[0].find("b")->children.size() == 3);
}

TEST_CASE("an empty file and one of comments hold nothing and are no error") {
  for (auto text : {"", "\n\n", "# nothing\n", "---\n", "---\n---\n", "\xef\xbb\xbf"}) {
    auto documents = parse_yaml(text, "f");
    CHECK(documents.roots.empty());
    CHECK(documents.problems.empty());
  }
}

TEST_CASE("unknown fields are warned of with the nearest name") {
  auto documents = parse_yaml("selecter: {}\nxyz: 1\nknown: 1\n", "f");
  auto& root = documents.roots.at(0);
  root.link();
  Problems problems;
  {
    Fields fields(&root, problems);
    fields.ignore({"selector", "known"});
  }
  REQUIRE(problems.size() == 2);
  CHECK(problems[0].field == "selecter");
  CHECK(problems[0].fix == "did you mean \"selector\"?");
  CHECK(problems[1].fix == "remove it");
  CHECK_FALSE(has_error(problems));
}

TEST_CASE("names follow RFC 1123") {
  CHECK(is_dns_label("a-1"));
  CHECK_FALSE(is_dns_label("a.b"));
  CHECK(is_dns_subdomain("a.b-c.d"));
  for (auto bad : {"", "-a", "a-", "A", "a_b", "a/b", "a..b", ".a", "a.", "a.-b", "a b"})
    CHECK_FALSE(is_dns_subdomain(bad));
  CHECK_FALSE(is_dns_label(std::string(64, 'a')));
}

TEST_CASE("problems read as one line with place and fix") {
  Problem problem{
      .file = "a.yaml", .line = 3, .column = 5, .field = "spec.x", .message = "is wrong", .fix = "right it"};
  CHECK(problem.to_string() == "a.yaml:3:5: spec.x: is wrong; fix: right it");
}
